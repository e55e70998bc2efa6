from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.client import TapClient
from sidecar.tap.identity import identify
from sidecar.tap.limits import LinkLimits
from sidecar.tap.transformers import attach
from sidecar.tap.transformers.blocks import find_blocks
from sidecar.tap.transformers.tap import tap_of
from sidecar.types import Phase, SamplingPolicy, UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, alone, left_padded, tapped, worst_difference
from tests.tap.models import ARCHITECTURES, EOS, LAYERS, PAD, library, tiny
from tests.tap.receiver import Receiver, control
from tests.tap.test_client import until

NAMES = ["a", "b", "c"]
TOLERANCE = 1e-6  # 100 times what batching moves these random models (width 32, states of size 0.1)


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, 2)))


@pytest.fixture
def model() -> Any:
    return tiny()


def _generate(model: Any, **settings: Any) -> Any:
    defaults = {"max_new_tokens": 6, "do_sample": False}
    return model.generate(**left_padded(), **(defaults | settings))


def _sequences(output: torch.Tensor) -> dict[str, list[int]]:
    """What each request computed: prompt and generated tokens, without padding and without the last one, never fed back."""
    width = max(map(len, PROMPTS))
    found = {}
    for name, prompt, row in zip(NAMES, PROMPTS, output.tolist(), strict=True):
        made = row[width:]
        end = made.index(EOS) if EOS in made else len(made) - 1
        found[name] = prompt + made[:end]
    return found


def _check(model: Any, receiver: Receiver, sequences: dict[str, list[int]], layer: int = 1) -> None:
    rows = receiver.rows(layer)
    assert rows.keys() == sequences.keys()
    for name, tokens in sequences.items():
        assert worst_difference(rows[name], alone(model, tokens, layer)[0]) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_is_its_requests_state_at_its_position(architecture: str, receiver: Receiver) -> None:
    model = tiny(architecture)
    plain = _generate(model)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = _generate(model)
    assert torch.equal(output, plain)
    assert tap.errors() == {}
    sequences = _sequences(output)
    for layer in (1, 2):
        _check(model, receiver, sequences, layer)
    computed = sum(map(len, sequences.values()))
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (computed, {})
    assert sorted(receiver.finished) == NAMES


def test_a_finished_row_is_neither_captured_nor_counted(receiver: Receiver) -> None:
    """``generate`` feeds EOS and padding to a row that has ended for as long as others run."""
    model = tiny()
    free = _generate(model, eos_token_id=None, max_new_tokens=8)
    eos = int(free[1, max(map(len, PROMPTS)) + 2])  # the third token of the second row ends it
    width = max(map(len, PROMPTS))
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = _generate(model, eos_token_id=eos, max_new_tokens=8)
    made = output[1, width:].tolist()
    ended = made.index(eos)
    assert ended < 7
    assert made[ended + 1 :] == [PAD] * (7 - ended)
    rows = receiver.rows(1)
    sequence = PROMPTS[1] + made[:ended]
    assert worst_difference(rows["b"], alone(model, sequence, 1)[0]) < TOLERANCE
    assert receiver.reports[-1].tokens_computed == sum(map(len, rows.values()))
    assert receiver.finished[0] == "b"


def test_a_row_ended_by_any_other_criterion_is_finished_too(receiver: Receiver) -> None:

    def stop_second_row(input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        ended = input_ids.shape[1] >= max(map(len, PROMPTS)) + 2
        return torch.tensor([False, ended, False])

    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        _generate(model, eos_token_id=None, stopping_criteria=[stop_second_row])
    assert {name: len(rows) for name, rows in receiver.rows(1).items()} == {"a": 12, "b": 4, "c": 10}


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 1},
        {"cache_implementation": "static"},
        {"do_sample": True},
    ],
    ids=str,
)
def test_every_way_of_generating_computes_the_same_rows(settings: dict[str, Any], receiver: Receiver) -> None:
    model = tiny()
    torch.manual_seed(4)
    plain = _generate(model, **settings)
    torch.manual_seed(4)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = _generate(model, **settings)
    assert torch.equal(output, plain)
    assert tap.errors() == {}
    _check(model, receiver, _sequences(output))
    for name, prompt in zip(NAMES, PROMPTS, strict=True):
        for segment in receiver.segments(name):
            assert segment.prompt_tokens == len(prompt)
            assert segment.phase == (Phase.PREFILL if segment.positions[0] < len(prompt) else Phase.DECODE)


def test_tokens_computed_twice_are_counted_and_sent_once(receiver: Receiver) -> None:
    """Without a cache every step computes the whole sequence again."""
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model.generate(
            torch.tensor([PROMPTS[0]]), use_cache=False, max_new_tokens=4, eos_token_id=None, do_sample=False
        )
    computed = sum(len(PROMPTS[0]) + step for step in range(4))
    assert receiver.reports[-1].tokens_computed == computed
    assert receiver.unseen == {UnseenReason.SAMPLING: computed - 10}


def test_several_sequences_per_prompt_are_requests_of_their_own(receiver: Receiver) -> None:
    model = tiny()
    torch.manual_seed(1)
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        output = _generate(model, do_sample=True, num_return_sequences=2, eos_token_id=None)
    width = max(map(len, PROMPTS))
    rows = receiver.rows(1)
    names = [f"{name}/{k}" for name in NAMES for k in range(2)]
    for row, name in enumerate(names):
        sequence = PROMPTS[row // 2] + output[row, width:-1].tolist()
        assert worst_difference(rows[name], alone(model, sequence, 1)[0]) < TOLERANCE


def test_beams_keep_positions_and_counts(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(NAMES):
        _generate(model, num_beams=2, eos_token_id=None)
    rows = receiver.rows(1)
    assert sorted(rows) == sorted(f"{name}/{k}" for name in NAMES for k in range(2))
    assert tap.errors() == {}
    for number, name in enumerate(NAMES):
        prompt = alone(model, PROMPTS[number], 1)[0]
        for k in range(2):
            mine = rows[f"{name}/{k}"]
            assert sorted(mine) == list(range(len(mine)))
            assert worst_difference({p: mine[p] for p in range(len(prompt))}, prompt) < TOLERANCE


def test_assisted_generation_is_counted_and_not_captured(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:
        model.generate(torch.tensor([PROMPTS[0]]), prompt_lookup_num_tokens=3, max_new_tokens=4, do_sample=False)
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: receiver.reports[-1].tokens_computed}
    assert len(tap.errors()) == 1


def test_a_second_turn_on_a_kept_cache_tells_what_it_did_not_compute(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:
        cache = library().DynamicCache(config=model.config)
        with tap.requests(["first"]):
            first = model.generate(
                torch.tensor([PROMPTS[0]]), past_key_values=cache, max_new_tokens=4, eos_token_id=None, do_sample=False
            )
        turn = [*first[0].tolist(), 21, 22, 23]
        with tap.requests(["second"]):
            second = model.generate(
                torch.tensor([turn]), past_key_values=cache, max_new_tokens=3, eos_token_id=None, do_sample=False
            )
    sequence = second[0, :-1].tolist()
    wanted = alone(model, sequence, 1)[0]
    rows = receiver.rows(1)["second"]
    cached = len(first[0]) - 1
    assert sorted(rows) == list(range(cached, len(sequence)))
    assert max(abs(rows[p] - wanted[p]).max() for p in rows) < TOLERANCE
    assert receiver.segments("second")[0].unseen == {UnseenReason.PREFIX_CACHE: cached}
    assert receiver.segments("second")[0].prompt_tokens == len(turn)


def test_a_plain_forward_pass_knows_padding_on_the_right(receiver: Receiver) -> None:
    model = tiny()
    ids, mask = torch.tensor([PROMPTS[0], [*PROMPTS[1], PAD, PAD, PAD, PAD]]), torch.ones(2, 7, dtype=torch.long)
    mask[1, 3:] = 0
    with tapped(model, receiver) as tap, tap.requests(["a", "b"], [f"00-{'1' * 32}-{'2' * 16}-01", ""], route="eval"):
        model(ids, attention_mask=mask)
        model(torch.tensor([PROMPTS[2]]))
    rows = receiver.rows(1)
    for name, prompt in (("a", PROMPTS[0]), ("b", PROMPTS[1])):
        assert worst_difference(rows[name], alone(model, prompt, 1)[0]) < TOLERANCE
    assert [segment.traceparent[:6] for segment in receiver.segments("a")] == ["00-111"]
    assert {segment.route for name in ("a", "b") for segment in receiver.segments(name)} == {"eval"}
    assert len(rows) == 3  # one row does not fit two names: it has a name of its own
    assert sorted(receiver.finished) == sorted(rows)


def test_a_decode_loop_written_by_hand_goes_on_with_its_request(receiver: Receiver) -> None:
    model = tiny()
    tokens = list(PROMPTS[0])
    with tapped(model, receiver), torch.inference_mode():
        output = model(torch.tensor([tokens]), use_cache=True)
        for _ in range(4):
            tokens.append(int(output.logits[0, -1].argmax()))
            output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
    ((name, rows),) = receiver.rows(1).items()
    assert worst_difference(rows, alone(model, tokens, 1)[0]) < TOLERANCE
    assert [s.phase for s in receiver.segments(name)] == [Phase.PREFILL] + [Phase.DECODE] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_go_in_the_type_that_they_have(dtype: torch.dtype, receiver: Receiver) -> None:
    model = tiny().to(dtype)
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model(torch.tensor([PROMPTS[0]]))
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states[2][0].float().numpy()
    assert worst_difference(receiver.rows(1)["a"], wanted) == 0


def test_sampled_tokens_are_the_policys(make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(control((1,), stride=4, first=2, last=1))
    model = tiny()
    with tapped(model, receiver) as tap, tap.requests(["a"]):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=6, eos_token_id=None, do_sample=False)
    rows = receiver.rows(1)["a"]
    assert sorted(rows) == [0, 1, 4, 6, 8]
    assert receiver.unseen == {UnseenReason.SAMPLING: 12 - 5}


def test_a_local_policy_wins_over_the_sidecars(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, sampling=SamplingPolicy(0.0)):
        model(torch.tensor([PROMPTS[0]]))
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.SAMPLING: 7}


def test_tap_points_follow_the_sidecar_while_the_model_runs(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:
        model(torch.tensor([PROMPTS[0]]))
        receiver.wait(lambda r: r.batches)
        receiver.push(control((0, LAYERS + 3), generation=2))
        until(lambda: tap.client.settings.plan_generation == 2)
        model(torch.tensor([PROMPTS[0]]))
        assert [point.name for point in tap.points] == ["blocks.0.resid_post"]
    layers = [[tensor.tap_point.layer for tensor in batch.tensors] for batch in receiver.batches]
    assert layers == [[1, 2], [0]]


def test_what_is_asked_for_and_cannot_be_captured_shows_as_missing(make_receiver: MakeReceiver) -> None:
    settings = control((LAYERS + 3,))
    settings.tap_points.add(layer=1, site=ingest_pb2.SITE_MLP_OUT)
    receiver = make_receiver(settings)
    model = tiny()
    with tapped(model, receiver):
        model(torch.tensor([PROMPTS[0]]))
    assert [len(batch.tensors) for batch in receiver.batches] == [0]
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (7, {})


def test_what_nobody_asks_for_is_left_out_on_purpose(make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(control(()))
    model = tiny()
    with tapped(model, receiver):
        model(torch.tensor([PROMPTS[0]]))
    assert receiver.batches == []
    assert receiver.unseen == {UnseenReason.SAMPLING: 7}


def test_fixed_layers_are_captured_whatever_is_asked_for(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, layers=[3, 0]):
        model(torch.tensor([PROMPTS[0]]))
    assert [[t.tap_point.layer for t in batch.tensors] for batch in receiver.batches] == [[0, 3]]


def test_a_hook_on_a_block_that_no_longer_runs_leaves_a_gap_that_shows(receiver: Receiver) -> None:
    """A block replaced after attaching, as by an adapter: the commonest way to capture nothing without an error."""
    model = tiny()
    with tapped(model, receiver):
        model(torch.tensor([PROMPTS[0]]))
        receiver.wait(lambda r: r.batches)
        other = tiny(seed=1)
        find_blocks(model)[1] = find_blocks(other)[1]
        model(torch.tensor([PROMPTS[0]]))
    layers = [[tensor.tap_point.layer for tensor in batch.tensors] for batch in receiver.batches]
    assert layers == [[1, 2], [2]]
    assert receiver.reports[-1].tokens_computed == 14
    assert receiver.unseen == {}


def test_an_exception_inside_the_tap_never_reaches_the_model(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    plain = _generate(model, eos_token_id=None)

    def explode(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("a bug of the tap")

    with tapped(model, receiver) as tap:
        for broken in ("hooks.copy_rows", "forward.layout", "forward._names"):
            with monkeypatch.context() as patch:
                patch.setattr(f"sidecar.tap.transformers.{broken}", explode)
                assert torch.equal(_generate(model, eos_token_id=None), plain)
        before = len(receiver.batches)
        assert torch.equal(_generate(model, eos_token_id=None), plain)
        receiver.wait(lambda r: len(r.batches) > before)
        errors = tap.errors()
    assert set(errors) == {"layer_hook", "before_forward"}
    assert caplog.text.count("tap_error") == 2  # once per kind
    counts = receiver.reports[-1]
    seen = sum(len(rows) for rows in receiver.rows(1).values())
    assert receiver.unseen.keys() == {UnseenReason.UNSUPPORTED}
    assert counts.tokens_computed == seen + receiver.unseen[UnseenReason.UNSUPPORTED]


def test_a_forward_pass_that_fails_is_counted_and_the_next_one_is_captured(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver), pytest.raises(IndexError):
        model(torch.tensor([[99_999]]))
    with tapped(model, receiver):
        with pytest.raises(IndexError):
            model(torch.tensor([[5, 99_999]]))
        model(torch.tensor([PROMPTS[0]]))
    assert sum(len(rows) for rows in receiver.rows(1).values()) == 7
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (9, {UnseenReason.UNSUPPORTED: 2})


def test_two_threads_in_one_model_do_not_mix_their_rows(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver) as tap:

        def work(name: str, prompt: list[int]) -> None:
            with tap.requests([name]):
                for _ in range(10):
                    model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False, eos_token_id=None)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(NAMES, PROMPTS, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for batch in receiver.batches:
        assert len(batch.segments.request_ids) == 1
    for name, prompt in zip(NAMES, PROMPTS, strict=True):
        assert len(receiver.segments(name)) == 10
        assert all(len(segment.positions) == len(prompt) for segment in receiver.segments(name))


def test_detach_leaves_the_model_and_its_class_as_they_were(receiver: Receiver) -> None:
    model = tiny()
    methods = {name: getattr(type(model), name) for name in ("generate", "_get_stopping_criteria", "__call__")}
    attributes = set(vars(model))
    with tapped(model, receiver) as tap:
        assert tap_of(model) is tap
        with pytest.raises(ValueError, match="tapped already"):
            attach(model, address=receiver.address, engine_id="twice")
        _generate(model)
    assert {name: getattr(type(model), name) for name in methods} == methods
    assert set(vars(model)) == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert tap_of(model) is None
    tap.detach()


def test_a_copy_of_a_tapped_model_is_not_tapped(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        wanted = copy.deepcopy(twin).generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, do_sample=False)
        assert torch.equal(twin.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, do_sample=False), wanted)
    assert receiver.reports[-1].tokens_computed == 0


def test_a_dropped_model_is_freed_and_its_tap_ends(receiver: Receiver) -> None:
    model = tiny()
    tap = attach(model, address=receiver.address, engine_id="engine")
    until(lambda: tap.client.connected)
    model(torch.tensor([PROMPTS[0]]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    receiver.wait(lambda r: r.goodbyes == 1)
    until(lambda: not tap.client.connected)


def test_a_compiled_model_is_captured_as_well(receiver: Receiver) -> None:
    """Inside a compiled graph a hook would run once and never again; these stay outside."""
    model = tiny()
    compiled: Any = torch.compile(model, backend="eager")
    with tapped(model, receiver) as tap, torch.no_grad(), tap.requests(["a"]):
        for _ in range(3):
            compiled(torch.tensor([PROMPTS[0]]))
    assert receiver.reports[-1].tokens_computed == 21
    assert [[t.tap_point.layer for t in b.tensors] for b in receiver.batches] == [[1, 2]] * 3
    torch.compiler.reset()


def test_the_cost_of_the_tap_is_measured_against_the_forward_pass(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, measure_cost=True) as tap:
        _generate(model, eos_token_id=None)
        cost = tap.cost()
    assert cost.steps == 6
    assert 0 < cost.tap_cpu_ns < cost.forward_cpu_ns
    with tapped(model, receiver) as tap, pytest.raises(RuntimeError, match="measure_cost"):
        tap.cost()


@pytest.mark.parametrize("layers", [[LAYERS], [-1]])
def test_layers_that_the_model_has_not_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        attach(tiny(), address="unix:/nowhere.sock", layers=layers)


def test_what_is_no_decoder_is_refused() -> None:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 32}
    with pytest.raises(ValueError, match="not a decoder"):
        attach(library().T5ForConditionalGeneration(library().T5Config(**sizes)), address="unix:/nowhere.sock")
    with pytest.raises(ValueError, match="not a decoder"):
        find_blocks(torch.nn.Linear(2, 2))


def test_the_callers_limits_are_those_of_the_queue(receiver: Receiver) -> None:
    """One step may be unanswered and one on its way: with a queue of one, three of ten are taken from a frozen sidecar."""
    model = tiny()
    with tapped(model, receiver, limits=LinkLimits(queue_batches=1, unanswered=1)) as tap:
        receiver.freeze()
        for _ in range(10):
            model(torch.tensor([PROMPTS[0]]))
        assert tap.client.counts().dropped >= 10 - 3
        receiver.thaw()


def test_limits_beside_a_client_that_has_its_own_are_refused(receiver: Receiver) -> None:
    client = TapClient(receiver.address, identify(tiny()), engine_id="engine")
    with pytest.raises(ValueError, match="limits"):
        attach(tiny(), client=client, limits=LinkLimits())
