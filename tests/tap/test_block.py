"""A verdict of BLOCK ends the generation of its request, and of no other; by default it is advice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.transformers.stops import Stops
from sidecar.types import Action
from tests.tap.conftest import MakeReceiver
from tests.tap.engine import PROMPTS, alone, left_padded, tapped, worst_difference
from tests.tap.models import EOS, PAD, library, tiny
from tests.tap.receiver import DEADLINE_S, Receiver, control
from tests.waiting import until

NAMES = ["a", "b", "c"]
WIDEST = max(map(len, PROMPTS))
BLOCK, FLAG = ingest_pb2.ACTION_BLOCK, ingest_pb2.ACTION_FLAG
TOLERANCE = 1e-6  # as in test_generate


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control((1, 2)))


def judging(name: str, action: int = BLOCK, after: int = 0) -> Callable[[ingest_pb2.StepBatch], ingest_pb2.StepResult]:
    """Answers as a sidecar whose signal fires on one request, in every batch that has a position of it from ``after`` on."""

    def answer(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        result = ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED, plan_generation=1)
        start = 0
        for request, rows in zip(batch.segments.request_ids, batch.segments.rows, strict=True):
            start += rows
            if request == name and batch.segments.positions[start - 1] >= after:
                result.verdicts.add(request_id=request, action=action).signals.add(name="harm", score=0.9)
        return result

    return answer


def merged(*results: ingest_pb2.StepResult) -> ingest_pb2.StepResult:
    """The verdicts of several signals on the same batch."""
    first = results[0]
    for other in results[1:]:
        first.verdicts.extend(other.verdicts)
    return first


def ordered(tap: Any, step: int, seen: list[int]) -> Any:
    """A stopping criterion that stops nothing: at this step it waits until the verdict has come, so that the test knows when."""

    def wait(input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        seen.append(input_ids.shape[1])
        if len(seen) == step:
            until(lambda: "b" not in tap._stops._live)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    return wait


def until_heard(heard: threading.Event) -> Any:
    def wait(input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        assert heard.wait(DEADLINE_S)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    return wait


def generate(model: Any, **settings: Any) -> torch.Tensor:
    output: torch.Tensor = model.generate(**left_padded(), **{"max_new_tokens": 8, "do_sample": False} | settings)
    return output


@pytest.mark.parametrize("eos", [EOS, None], ids=["eos", "no eos"])
def test_one_row_ends_and_the_others_go_on_as_they_would_have(eos: int | None, receiver: Receiver) -> None:
    receiver.answer = judging("b", after=len(PROMPTS[1]) + 1)  # the third pass has this position
    model = tiny()
    plain = generate(model, eos_token_id=eos)
    with tapped(model, receiver, stop_on_block=True) as tap, tap.requests(NAMES):
        output = generate(model, eos_token_id=eos, stopping_criteria=[ordered(tap, 3, [])])
        assert tap.errors() == {}
        assert tap.stopped == 1
    assert torch.equal(output[[0, 2]], plain[[0, 2]])
    assert torch.equal(output[1, : WIDEST + 3], plain[1, : WIDEST + 3])
    assert output[1, WIDEST + 3 :].tolist() == [PAD] * 5
    sequence = PROMPTS[1] + output[1, WIDEST : WIDEST + 2].tolist()  # the third token was never fed back
    assert worst_difference(receiver.rows(1)["b"], alone(model, sequence, 1)[0]) < TOLERANCE
    assert receiver.finished[0] == "b"
    assert receiver.unseen == {}


def test_a_single_row_ends_its_call(receiver: Receiver) -> None:
    receiver.answer = judging("b", after=len(PROMPTS[1]))
    model = tiny()
    with tapped(model, receiver, stop_on_block=True) as tap, tap.requests(["b"]):
        criteria = [ordered(tap, 2, [])]
        output = model.generate(
            torch.tensor([PROMPTS[1]]), max_new_tokens=8, do_sample=False, eos_token_id=None, stopping_criteria=criteria
        )
        assert tap.stopped == 1
    assert output.shape[1] == len(PROMPTS[1]) + 2


@pytest.mark.parametrize(
    ("stop_on_block", "action"), [(False, BLOCK), (True, FLAG), (True, ingest_pb2.ACTION_ESCALATE)], ids=str
)
def test_any_other_verdict_and_without_the_option_every_verdict_is_advice(
    stop_on_block: bool, action: int, receiver: Receiver
) -> None:
    receiver.answer = judging("b", action)
    model, heard = tiny(), threading.Event()
    plain = generate(model, eos_token_id=None)

    def listen(request: str, _action: Action, signals: tuple[str, ...]) -> None:
        assert (request, signals) == ("b", ("harm",))
        heard.set()

    with tapped(model, receiver, stop_on_block=stop_on_block) as tap, tap.requests(NAMES):
        tap.client.on_verdict(listen)
        assert torch.equal(generate(model, eos_token_id=None, stopping_criteria=[until_heard(heard)]), plain)
        assert (tap.stopped, tap.errors()) == (0, {})


def test_a_beam_search_is_not_stopped(receiver: Receiver) -> None:
    receiver.answer = judging("b/0")
    model, heard = tiny(), threading.Event()
    settings = {"num_beams": 2, "eos_token_id": None, "max_new_tokens": 5}
    plain = generate(model, **settings)
    with tapped(model, receiver, stop_on_block=True) as tap, tap.requests(NAMES):
        tap.client.on_verdict(lambda *_: heard.set())
        assert torch.equal(generate(model, stopping_criteria=[until_heard(heard)], **settings), plain)
        assert tap.stopped == 0


def test_a_verdict_after_the_end_does_not_stop_the_next_request_of_the_same_name(receiver: Receiver) -> None:
    receiver.answer = judging("b", after=len(PROMPTS[1]) + 7 - 1)  # the last row that its generation feeds
    model = tiny()
    plain = generate(model, eos_token_id=None)
    heard = threading.Event()
    with tapped(model, receiver, stop_on_block=True) as tap:
        tap.client.on_verdict(lambda *_: heard.set())
        with tap.requests(NAMES):
            generate(model, eos_token_id=None)
        assert heard.wait(DEADLINE_S)
        before = tap.stopped
        with tap.requests(NAMES):
            assert torch.equal(generate(model, eos_token_id=None, max_new_tokens=6), plain[:, :-2])
        assert tap.stopped == before


# continuous batching

_NEW = 40


@contextmanager
def running(model: Any, tokens: int = 64, **config: Any) -> Iterator[Any]:
    manager = model.init_continuous_batching(
        generation_config=library().GenerationConfig(
            max_new_tokens=_NEW, eos_token_id=-1, pad_token_id=PAD, **{"do_sample": False} | config
        ),
        continuous_batching_config=library().ContinuousBatchingConfig(
            page_size=16, num_blocks=64, max_batch_tokens=tokens, seed=0
        ),
    )
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, timeout=DEADLINE_S)


@contextmanager
def pausing(model: Any, tap: Any, step: int, name: str = "b") -> Iterator[None]:
    """The engine's thread waits in this step until the verdict on the request has come."""
    steps = [0]

    def wait(*_: Any) -> None:
        steps[0] += 1
        if steps[0] == step:
            until(lambda: name not in tap._stops._live)

    handle = model.model.layers[0].register_forward_pre_hook(wait)
    try:
        yield
    finally:
        handle.remove()


def results(manager: Any, count: int) -> dict[str, Any]:
    found = [manager.get_result(timeout=DEADLINE_S) for _ in range(count)]
    assert None not in found
    return {one.request_id: one for one in found}


def test_a_request_of_continuous_batching_ends_with_what_it_has_and_the_others_go_on(receiver: Receiver) -> None:
    receiver.answer = judging("b")
    model = tiny()
    with running(model) as manager:
        for name, prompt in zip(NAMES, PROMPTS, strict=True):
            manager.add_request(prompt, request_id=name)
        plain = results(manager, 3)
    with tapped(model, receiver, stop_on_block=True) as tap, pausing(model, tap, 4), running(model) as manager:
        for name, prompt in zip(NAMES, PROMPTS, strict=True):
            manager.add_request(prompt, request_id=name)
        outputs = results(manager, 3)
        assert (tap.stopped, tap.errors()) == (1, {})
        until(lambda: len(receiver.finished) == 3)
    for name in ("a", "c"):
        assert outputs[name].generated_tokens == plain[name].generated_tokens
    blocked = outputs["b"]
    assert blocked.is_finished()
    assert blocked.error is None
    assert 0 < len(blocked.generated_tokens) < _NEW
    assert blocked.generated_tokens == plain["b"].generated_tokens[: len(blocked.generated_tokens)]
    assert receiver.finished[0] == "b"
    assert sorted(receiver.rows(1)["b"]) == list(range(len(PROMPTS[1]) + len(blocked.generated_tokens) - 1))


def test_a_request_blocked_in_its_prefill_is_answered_with_nothing(receiver: Receiver) -> None:
    receiver.answer = judging("b")
    model = tiny()
    with tapped(model, receiver, stop_on_block=True) as tap, pausing(model, tap, 2), running(model, 16) as manager:
        manager.add_request(list(range(5, 205)), request_id="b")
        output = results(manager, 1)["b"]
        assert tap.stopped == 1
    assert (output.generated_tokens, output.error) == ([], None)
    assert output.is_finished()


def test_sequences_that_a_blocked_request_was_to_be_forked_into_are_answered_too(receiver: Receiver) -> None:
    receiver.answer = judging("b")
    model = tiny()
    with (
        tapped(model, receiver, stop_on_block=True) as tap,
        pausing(model, tap, 2),
        running(model, 16, num_return_sequences=2, do_sample=True) as manager,
    ):
        manager.add_request(list(range(5, 205)), request_id="b")
        outputs = results(manager, 2)
        assert tap.stopped == 1
    assert all(one.is_finished() and not one.generated_tokens for one in outputs.values())


def test_a_request_that_its_caller_cancels_is_not_counted_and_not_answered(receiver: Receiver) -> None:
    model = tiny()
    with tapped(model, receiver, stop_on_block=True) as tap, running(model) as manager:
        manager.add_request(PROMPTS[1], request_id="b")
        receiver.wait(lambda r: r.batches)
        manager.cancel_request("b")
        receiver.wait(lambda r: "b" in r.finished)
        manager.add_request(PROMPTS[0], request_id="a")
        assert results(manager, 1).keys() == {"a"}
        assert tap.stopped == 0


def test_a_request_under_an_id_that_the_wire_does_not_take_is_stopped_by_its_hash(receiver: Receiver) -> None:
    from sidecar.tap.step import wire_id

    odd = "two words"
    receiver.answer = judging(wire_id(odd))
    model = tiny()
    with (
        tapped(model, receiver, stop_on_block=True) as tap,
        pausing(model, tap, 4, wire_id(odd)),
        running(model) as manager,
    ):
        manager.add_request(PROMPTS[1], request_id=odd)
        assert len(results(manager, 1)[odd].generated_tokens) < _NEW
        assert tap.stopped == 1


# who is stopped


def test_only_a_block_of_a_request_under_way_is_passed_on_and_once() -> None:
    stops, called = Stops(), []
    stops.heed("r", lambda: called.append("r"))
    stops.verdict("r", Action.FLAG, ())
    stops.verdict("other", Action.BLOCK, ())
    assert called == []
    stops.verdict("r", Action.BLOCK, ())
    stops.verdict("r", Action.BLOCK, ())
    assert called == ["r"]
    stops.heed("s", lambda: called.append("s"))
    stops.forget("s")
    stops.verdict("s", Action.BLOCK, ())
    assert called == ["r"]


def test_a_stopped_request_is_told_once_and_forgotten_when_its_name_comes_again() -> None:
    stops = Stops()
    stops.book("r")
    assert (stops.claim("r"), stops.claim("r"), stops.stopped) == (True, False, 1)
    stops.book("r")
    stops.heed("r", lambda: None)
    assert not stops.claim("r")


def test_what_is_remembered_is_bounded() -> None:
    stops = Stops()
    for number in range(70_000):
        stops.heed(f"r{number}", lambda: None)
        stops.book(f"s{number}")
    assert (len(stops._live), len(stops._ended), stops.stopped) == (65536, 1024, 70_000)
