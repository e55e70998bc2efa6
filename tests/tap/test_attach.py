"""What is captured, when and by whose wish, and how a tap comes and goes."""

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
from sidecar.types import SamplingPolicy, UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, tapped, worst_difference
from tests.tap.generating import NAMES, generate
from tests.tap.models import LAYERS, tiny
from tests.tap.receiver import Receiver, control
from tests.waiting import until


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, 2)))


@pytest.fixture
def model() -> Any:
    return tiny()


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
    settings.tap_points.add(layer=1, site=ingest_pb2.SITE_RESID_POST, stack=ingest_pb2.STACK_ENCODER)
    receiver = make_receiver(settings)
    model = tiny()
    with tapped(model, receiver):
        model(torch.tensor([PROMPTS[0]]))
    assert [len(batch.tensors) for batch in receiver.batches] == [0]
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (7, {})
    assert receiver.reports[-1].encoder_tokens_computed == 0


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
    plain = generate(model, eos_token_id=None)

    def explode(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("a bug of the tap")

    with tapped(model, receiver) as tap:
        for broken in (
            "tensors.keeper.copy_rows",
            "transformers.hooks.averaged",
            "transformers.forward.layout",
            "transformers.forward.open_batch",
            "transformers.forward.token_grid",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"sidecar.tap.{broken}", explode)
                assert torch.equal(generate(model, eos_token_id=None), plain)
        before = len(receiver.batches)
        assert torch.equal(generate(model, eos_token_id=None), plain)
        receiver.wait(lambda r: len(r.batches) > before)
        errors = tap.errors()
    assert set(errors) == {"layer_hook", "before_forward"}
    assert caplog.text.count("tap_error") == 2  # once per kind
    counts = receiver.reports[-1]
    seen = sum(len(rows) for rows in receiver.rows(1).values())
    assert receiver.unseen.keys() == {UnseenReason.UNSUPPORTED}
    assert counts.tokens_computed == seen + receiver.unseen[UnseenReason.UNSUPPORTED]


def test_a_call_that_gives_the_model_nothing_costs_the_next_one_nothing(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver):
        with pytest.raises(ValueError, match="input_ids"):
            model()
        model(torch.tensor([PROMPTS[0]]))
    assert sum(len(rows) for rows in receiver.rows(1).values()) == 7
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (7, {})


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
        generate(model)
    assert {name: getattr(type(model), name) for name in methods} == methods
    assert set(vars(model)) == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert tap_of(model) is None
    tap.detach()


def test_a_step_that_is_running_when_the_tap_is_taken_off_is_not_counted_as_lost(receiver: Receiver) -> None:
    """Its hooks are gone half-way: rows of it cannot come, and a count without rows is what blindness looks like."""
    model = tiny()
    client = TapClient(receiver.address, identify(model), engine_id="engine")
    client.start()
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        inside.set()
        assert go_on.wait(10.0)

    tap = attach(model, client=client)
    until(lambda: client.connected)
    model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=1, do_sample=False)
    handle = find_blocks(model)[0].register_forward_hook(wait)
    call = {"max_new_tokens": 2, "do_sample": False}
    running = threading.Thread(target=model.generate, args=(torch.tensor([PROMPTS[1]]),), kwargs=call)
    running.start()
    assert inside.wait(10.0)
    tap.detach()
    go_on.set()
    running.join(10.0)
    handle.remove()
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes == 1)
    rows = sum(len(values) for values in receiver.rows(1).values())
    assert (receiver.reports[-1].tokens_computed, receiver.unseen) == (rows, {})
    assert rows == len(PROMPTS[0])


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


@pytest.mark.shows("transformers", "torch.compile")
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


def test_the_cost_of_the_tap_is_measured_beside_the_forward_pass(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, measure_cost=True) as tap:
        generate(model, eos_token_id=None)
        cost = tap.cost()
    assert cost.steps == 6
    assert (
        min(cost.tap_cpu_ns, cost.forward_cpu_ns) > 0
    )  # which is more of a tiny model, the first steps of a process decide
    with tapped(model, receiver) as tap, pytest.raises(RuntimeError, match="measure_cost"):
        tap.cost()


@pytest.mark.parametrize("layers", [[LAYERS], [-1]])
def test_layers_that_the_model_has_not_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        attach(tiny(), address="unix:/nowhere.sock", layers=layers)


@pytest.mark.parametrize("layers", [["encoder.blocks.0.resid_post"], ["blocks.0.nowhere"]])
def test_tap_points_that_the_model_has_not_are_refused(layers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no encoder|not a tap point"):
        attach(tiny(), address="unix:/nowhere.sock", layers=layers)


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not a decoder"):
        attach(torch.nn.Linear(2, 2), address="unix:/nowhere.sock")


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
