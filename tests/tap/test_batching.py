from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sidecar.tap.transformers import batching
from sidecar.tap.transformers.context import CALLER, Caller
from sidecar.types import Phase, UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import alone, tapped, worst_difference
from tests.tap.models import EOS, PAD, VOCABULARY, library, tiny
from tests.tap.receiver import DEADLINE_S, Receiver, control

TOLERANCE = 1e-6  # as in test_generate
PAGE = 16


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, 2)))


def _prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(5, VOCABULARY, length).tolist() for length in lengths]


def _settings(blocks: int = 64, tokens: int = 64) -> dict[str, Any]:
    return {
        "generation_config": library().GenerationConfig(
            max_new_tokens=8, eos_token_id=EOS, pad_token_id=PAD, do_sample=False
        ),
        "continuous_batching_config": library().ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=blocks, max_batch_tokens=tokens, seed=0
        ),
    }


@contextmanager
def _running(model: Any, **sizes: int) -> Iterator[Any]:
    manager = model.init_continuous_batching(**_settings(**sizes))
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, timeout=DEADLINE_S)


def _result(manager: Any) -> Any:
    result = manager.get_result(timeout=DEADLINE_S)
    assert result is not None
    return result


def _check(model: Any, receiver: Receiver, name: str, tokens: list[int], start: int = 0) -> None:
    """Every position that was fed, each once, each with the state that the sequence has by itself."""
    for layer in (1, 2):
        rows, wanted = receiver.rows(layer)[name], alone(model, tokens[:-1], layer)[0]
        assert sorted(rows) == list(range(start, len(wanted)))
        difference = max(float(np.abs(rows[position] - wanted[position]).max()) for position in rows)
        assert difference < TOLERANCE


@pytest.mark.shows("transformers", "continuous batching")
def test_every_row_is_its_requests_state_at_its_position(receiver: Receiver) -> None:
    """Prompts longer than a step are prefilled in pieces, beside others that decode."""
    model = tiny()
    prompts = _prompts(3, 40, 17, 200, 5)
    plain = model.generate_batch(prompts, **_settings())
    with tapped(model, receiver) as tap:
        outputs = model.generate_batch(prompts, **_settings())
        assert tap.errors() == {}
    fed = 0
    for number, prompt in enumerate(prompts):
        name = f"req_{number}"
        assert outputs[name].generated_tokens == plain[name].generated_tokens
        tokens = prompt + outputs[name].generated_tokens
        _check(model, receiver, name, tokens)
        fed += len(tokens) - 1
        assert {segment.prompt_tokens for segment in receiver.segments(name)} == {len(prompt)}
        for segment in receiver.segments(name):
            assert segment.phase == (Phase.PREFILL if segment.positions[0] < len(prompt) else Phase.DECODE)
    report = receiver.reports[-1]
    assert (report.tokens_computed, report.requests, receiver.unseen) == (fed, 5, {})
    assert sorted(receiver.finished) == sorted(outputs)
    assert any(len(batch.segments.request_ids) > 2 for batch in receiver.batches)


@pytest.mark.shows("transformers", "prefix cache")
def test_a_shared_prefix_is_told_as_cached_and_not_as_lost(receiver: Receiver) -> None:
    model = tiny()
    (prefix,) = _prompts(3 * PAGE)
    with tapped(model, receiver), _running(model) as manager:
        manager.add_request([*prefix, 7, 8], request_id="first", max_new_tokens=4)
        first = _result(manager)
        manager.add_request([*prefix, 9, 10, 11], request_id="second", max_new_tokens=4)
        second = _result(manager)
    _check(model, receiver, "first", first.prompt_ids + first.generated_tokens)
    _check(model, receiver, "second", second.prompt_ids + second.generated_tokens, start=3 * PAGE)
    assert receiver.segments("second")[0].unseen == {UnseenReason.PREFIX_CACHE: 3 * PAGE}
    assert receiver.unseen == {UnseenReason.PREFIX_CACHE: 3 * PAGE}


def test_the_end_of_the_last_request_is_told_without_a_next_step(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver), _running(model) as manager:
        manager.add_request([5, 6, 7], request_id="only", max_new_tokens=3)
        receiver.wait(lambda r: r.finished == ["only"])


@pytest.mark.shows("transformers", "aborts")
def test_a_cancelled_request_is_told_as_ended_and_its_rows_and_those_beside_it_are_the_models_own(
    receiver: Receiver,
) -> None:
    model = tiny()
    with tapped(model, receiver) as tap, _running(model) as manager:
        manager.add_request([5, 6, 7], request_id="endless", max_new_tokens=400, eos_token_id=-1)
        receiver.wait(lambda r: r.segments("endless"))
        manager.add_request([8, 9, 10, 11], request_id="beside", max_new_tokens=8, eos_token_id=-1)
        receiver.wait(lambda r: r.segments("beside"))
        manager.cancel_request("endless")
        receiver.wait(lambda r: {"endless", "beside"} <= set(r.finished))
        assert tap.errors() == {}
    for name, prompt in (("endless", [5, 6, 7]), ("beside", [8, 9, 10, 11])):
        rows = receiver.rows(1)[name]
        settings = {"max_new_tokens": len(rows), "do_sample": False, "eos_token_id": None}
        told = model.generate(torch.tensor([prompt]), **settings)[0].tolist()
        assert worst_difference(rows, alone(model, told[: len(rows)], 1)[0]) < TOLERANCE
    assert 3 < len(receiver.rows(1)["endless"]) < 402
    assert len(receiver.rows(1)["beside"]) == 4 + 7


def test_more_requests_than_are_followed_are_counted_and_answered_as_ever(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_REQUESTS", 2)
    model, prompts = tiny(), _prompts(3, 4, 5, 6)
    plain = model.generate_batch(prompts, **_settings())
    with tapped(model, receiver) as tap:
        outputs = model.generate_batch(prompts, **_settings())
        told = tap.errors()
    assert all(outputs[name].generated_tokens == plain[name].generated_tokens for name in plain)
    run = "more requests run than are followed: the end of the oldest is not told"
    assert told.keys() == {run}
    assert told[run] >= 2


def test_what_callers_told_of_more_requests_than_are_followed_is_counted_when_it_is_forgotten(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_REQUESTS", 2)
    model = tiny()
    with tapped(model, receiver) as tap:
        manager = model.init_continuous_batching(**_settings())  # not started: whoever is added waits
        token = CALLER.set(Caller(f"00-{'a' * 32}-{'b' * 16}-01", "chat"))
        for number in range(5):
            manager.add_request([5, 6, 7], request_id=f"waits{number}", max_new_tokens=2)
        CALLER.reset(token)
        wait = "more requests wait than are followed: what their callers told of the oldest is forgotten"
        assert tap.errors() == {wait: 3}


def test_requests_that_fail_with_the_engine_are_told_as_ended(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver), _running(model) as manager:
        manager.add_request([5, 6, 7], request_id="endless", max_new_tokens=400, eos_token_id=-1)
        receiver.wait(lambda r: r.segments("endless"))
        manager.stop(block=True, timeout=DEADLINE_S, hard_stop=True)
        receiver.wait(lambda r: r.finished == ["endless"])


@pytest.mark.shows("transformers", "preemption")
def test_requests_put_off_for_want_of_memory_end_once_and_no_position_comes_twice(receiver: Receiver) -> None:
    """The engine throws away the cache of a request and later computes it again, under the same name."""
    model = tiny()
    settings = _settings(blocks=8, tokens=64)
    settings["generation_config"].max_new_tokens = 40
    settings["generation_config"].eos_token_id = -1
    prompts = _prompts(14, 12, 13, 11)
    with tapped(model, receiver) as tap:
        outputs = model.generate_batch(prompts, **settings)
        assert tap.errors() == {}
    fed = 0
    for number, prompt in enumerate(prompts):
        tokens = prompt + outputs[f"req_{number}"].generated_tokens
        _check(model, receiver, f"req_{number}", tokens)
        fed += len(tokens) - 1
    assert receiver.reports[-1].tokens_computed > fed  # otherwise nothing was put off, and this test tests nothing
    assert receiver.unseen[UnseenReason.SAMPLING] + receiver.unseen.get(UnseenReason.PREFIX_CACHE, 0) > 0
    assert receiver.reports[-1].tokens_computed - receiver.unseen[UnseenReason.SAMPLING] == fed
    assert sorted(receiver.finished) == sorted(outputs)


def test_the_callers_trace_goes_with_the_request(receiver: Receiver) -> None:
    model = tiny()
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    with tapped(model, receiver), _running(model) as manager:
        token = CALLER.set(Caller(parent, "chat"))
        manager.add_request([5, 6, 7], request_id="traced", max_new_tokens=2)
        CALLER.reset(token)
        manager.add_request([5, 6, 7], request_id="plain", max_new_tokens=2)
        receiver.wait(lambda r: len(r.finished) == 2)
    assert {(s.traceparent, s.route) for s in receiver.segments("traced")} == {(parent, "chat")}
    assert {(s.traceparent, s.route) for s in receiver.segments("plain")} == {("", "")}


def test_a_name_that_the_sidecar_would_refuse_costs_its_neighbours_nothing(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver), _running(model) as manager:
        manager.add_request([5, 6, 7], request_id="x" * 300 + "\n", max_new_tokens=4)
        manager.add_request([8, 9], request_id="good", max_new_tokens=4)
        receiver.wait(lambda r: len(r.finished) == 2)
    assert sorted(receiver.rows(1)["good"]) == list(range(5))
    (odd,) = set(receiver.rows(1)) - {"good"}
    assert odd.startswith("hashed:")


def test_an_exception_inside_the_tap_never_reaches_the_engine(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    prompts = _prompts(5, 9)
    plain = model.generate_batch(prompts, **_settings())

    def explode(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("a bug of the tap")

    with tapped(model, receiver) as tap:
        monkeypatch.setattr(batching.BatchWatch, "_spans", explode)
        monkeypatch.setattr(batching.BatchWatch, "ended", explode)
        outputs = model.generate_batch(prompts, **_settings())
        assert tap.errors()["before_batch"] > 0
    for name in plain:
        assert outputs[name].generated_tokens == plain[name].generated_tokens
    report = receiver.reports[-1]
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: report.tokens_computed}


def test_steps_that_are_replayed_as_a_graph_are_counted_with_that_reason_and_the_log_says_what_to_do(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's own runner says that it replays; for want of a device its steps are computed as ever."""
    runner = batching._class("model_runner", "ModelRunner")
    plain_init, plain_way = runner.__init__, runner._get_forward_fn

    def replaying(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        self.use_cuda_graph_varlen = True

    monkeypatch.setattr(runner, "__init__", replaying)
    monkeypatch.setattr(runner, "_get_forward_fn", lambda *args, **kwargs: (plain_way(*args, **kwargs)[0], False))
    model, prompts = tiny(), _prompts(5, 9)
    plain = model.generate_batch(prompts, **_settings())
    with tapped(model, receiver) as tap:
        outputs = model.generate_batch(prompts, **_settings())
        (said,) = tap.errors()
    assert "serve with --no-cb-use-cuda-graph" in said
    assert caplog.text.count(said) == 1
    for name in plain:
        assert outputs[name].generated_tokens == plain[name].generated_tokens
    fed = sum(len(prompt) + len(outputs[f"req_{number}"].generated_tokens) - 1 for number, prompt in enumerate(prompts))
    assert (receiver.batches, receiver.reports[-1].tokens_computed) == ([], fed)
    assert receiver.unseen == {UnseenReason.GRAPH_REPLAY: fed}


@pytest.mark.parametrize("decode", [False, True])
def test_a_runner_that_replays_decode_steps_alone_is_read_in_all_others(decode: bool) -> None:
    io = SimpleNamespace(use_block_table=decode)
    runner = SimpleNamespace(inputs_and_outputs=io, use_cuda_graph_decode=True, use_cuda_graph_varlen=False)
    assert batching._replays(runner) is decode


def test_a_version_with_other_names_is_not_tapped_and_says_so(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    other = (
        *batching._WRAPPERS[:-1],
        ("continuous_api", "ContinuousBatchingManager", "submit_request", lambda original: original),
    )
    monkeypatch.setattr(batching, "_WRAPPERS", other)
    untouched = {entry[2]: getattr(batching._class(entry[0], entry[1]), entry[2]) for entry in other[:-1]}
    with tapped(model, receiver):
        for entry in other[:-1]:
            assert getattr(batching._class(entry[0], entry[1]), entry[2]) is untouched[entry[2]]
        model.generate_batch(_prompts(5, 9), **_settings())
    assert "ContinuousBatchingManager.submit_request" in caplog.text
    report = receiver.reports[-1]
    assert report.tokens_computed > 0
    assert receiver.unseen == {UnseenReason.UNSUPPORTED: report.tokens_computed}


def test_the_cost_of_a_batched_step_is_booked_once(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, measure_cost=True) as tap:
        model.generate_batch(_prompts(5, 9), **_settings())
        cost = tap.cost()
    assert cost.steps == receiver.reports[-1].step
    assert 0 < cost.tap_cpu_ns < cost.forward_cpu_ns


def test_a_model_that_is_not_tapped_runs_beside_one_that_is(receiver: Receiver) -> None:
    model, other = tiny(), tiny(seed=1)
    with tapped(model, receiver):
        other.generate_batch(_prompts(5, 9), **_settings())
    assert receiver.reports[-1].tokens_computed == 0


def test_generate_after_continuous_batching_is_tapped_again(receiver: Receiver) -> None:
    import torch

    model = tiny()
    with tapped(model, receiver) as tap:
        model.generate_batch(_prompts(5), **_settings())
        with tap.requests(["later"]):
            output = model.generate(torch.tensor(_prompts(4)), max_new_tokens=3, do_sample=False)
    assert worst_difference(receiver.rows(1)["later"], alone(model, output[0, :-1].tolist(), 1)[0]) < TOLERANCE
