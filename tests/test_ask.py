"""A caller that waits gets an answer in time: from a real server that answers, is late, never answers, or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.address import INGEST
from sidecar.ask import Advice, Answer, Asker, DecidedBy, Finding
from sidecar.types import Action
from tests.builders import wire_batch

DEADLINE_S = 20.0
LONG_S, SHORT_S = 10.0, 0.2
Reply = Callable[[ingest_pb2.StepBatch], ingest_pb2.StepResult | bytes]


def two() -> ingest_pb2.StepBatch:
    return wire_batch(requests=[("good", (0, 1)), ("bad", (0, 1, 2))])


def judged(batch: ingest_pb2.StepBatch, **changes: object) -> ingest_pb2.StepResult:
    """What a sidecar says: block "bad", allow the others."""
    result = ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED, **changes)
    for name in batch.segments.request_ids:
        bad = name == "bad"
        signals = [ingest_pb2.SignalReading(name="toxic", score=0.75, threshold=0.5)] if bad else []
        action = ingest_pb2.ACTION_BLOCK if bad else ingest_pb2.ACTION_ALLOW
        result.verdicts.add(
            request_id=name, action=action, signals=signals, read=["toxic"], skipped=["mood"], late=["spam"]
        )
    return result


class Server:
    """Observe, answered by ``reply``; ``batches`` are those that came."""

    def __init__(self, address: str) -> None:
        self.reply: Reply = judged
        self.batches: list[ingest_pb2.StepBatch] = []
        self.came = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        handlers = {"Observe": grpc.unary_unary_rpc_method_handler(self._observe)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INGEST, handlers),))
        self._server.add_insecure_port(address)
        self._server.start()

    def _observe(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        batch = ingest_pb2.ObserveRequest.FromString(raw).step_batch
        self.batches.append(batch)
        self.came.set()
        try:
            made = self.reply(batch)
        except PermissionError as refusal:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))
        return made if isinstance(made, bytes) else ingest_pb2.ObserveResponse(result=made).SerializeToString()

    def stop(self) -> None:
        assert self._server.stop(0).wait(DEADLINE_S)


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home:  # short: a socket's path has 107 bytes
        yield f"unix:{home}/ask.sock"


@pytest.fixture
def server(address: str) -> Iterator[Server]:
    made = Server(address)
    yield made
    made.stop()


@pytest.fixture
def asker(address: str) -> Iterator[Asker]:
    with Asker(address, at_deadline="block") as made:
        yield made


def counts(asker: Asker) -> tuple[int, int, int, int]:
    return asker.asked, asker.decided, asker.late, asker.refused


def fell_back(answer: Answer, why: str) -> None:
    """The answer is the policy's, for every request of ``two()``."""
    assert answer.verdicts == {"good": Advice(Action.BLOCK), "bad": Advice(Action.BLOCK)}
    assert answer.decided_by is DecidedBy.DEADLINE
    assert answer.why.startswith(why)


def test_the_sidecars_verdicts_come_back_by_request(server, asker):
    answer = asker.ask(two(), LONG_S)
    heard = {"read": ("toxic",), "skipped": ("mood",), "late": ("spam",)}
    assert answer.verdicts == {
        "good": Advice(Action.ALLOW, **heard),
        "bad": Advice(Action.BLOCK, (Finding("toxic", 0.75, 0.5),), **heard),
    }
    assert (answer.decided_by, answer.why) == (DecidedBy.SIDECAR, "")
    assert counts(asker) == (1, 1, 0, 0)


@pytest.mark.parametrize("action", list(Action))
def test_every_action_of_the_wire_is_understood(server, asker, action):
    number = ingest_pb2.Action.Value(f"ACTION_{action.name}")

    def reply(batch):
        verdicts = [ingest_pb2.Verdict(request_id=one, action=number) for one in batch.segments.request_ids]
        return ingest_pb2.StepResult(outcome=ingest_pb2.OUTCOME_SCORED, verdicts=verdicts)

    server.reply = reply
    assert [one.action for one in asker.ask(two(), LONG_S).verdicts.values()] == [action, action]


def test_the_sidecar_is_told_how_long_is_left_and_the_callers_batch_stays_as_it_is(server, asker):
    batch = two()
    before = batch.SerializeToString(deterministic=True)
    asker.ask(batch, LONG_S)
    assert batch.SerializeToString(deterministic=True) == before
    (came,) = server.batches
    assert LONG_S * 0.9e6 < came.verdict_within_us <= LONG_S * 1e6
    came.ClearField("verdict_within_us")
    assert came == batch


def test_an_answer_that_comes_late_is_not_waited_for(server, asker):
    over = threading.Event()

    def late(batch):
        over.wait(DEADLINE_S)
        return judged(batch)

    asker.ask(two(), LONG_S)  # connected
    server.reply = late
    start = time.monotonic()
    answer = asker.ask(two(), SHORT_S)
    took_s = time.monotonic() - start
    over.set()
    fell_back(answer, "DEADLINE_EXCEEDED")
    assert SHORT_S <= took_s < 10 * SHORT_S
    assert counts(asker) == (2, 1, 1, 0)
    server.reply = judged
    assert asker.ask(two(), LONG_S).decided_by is DecidedBy.SIDECAR


def test_a_sidecar_that_never_was_there_is_answered_for_at_once(asker):
    start = time.monotonic()
    fell_back(asker.ask(two(), LONG_S), "UNAVAILABLE")
    assert time.monotonic() - start < LONG_S / 2
    assert counts(asker) == (1, 0, 1, 0)


def test_a_sidecar_that_goes_in_the_middle_of_a_question_and_comes_back(address, asker):
    first, over = Server(address), threading.Event()
    first.reply = lambda _: over.wait(DEADLINE_S) and None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asker.ask, two(), LONG_S)
        assert first.came.wait(DEADLINE_S)
        first.stop()
        fell_back(asked.result(DEADLINE_S), "")
        over.set()
    fell_back(asker.ask(two(), LONG_S), "UNAVAILABLE")
    second = Server(address)
    try:
        until = time.monotonic() + 5.0
        while (answer := asker.ask(two(), LONG_S)).decided_by is DecidedBy.DEADLINE:
            assert time.monotonic() < until
            assert not second.came.wait(0.05)
        assert answer.verdicts["bad"].action is Action.BLOCK
    finally:
        second.stop()
    assert asker.asked == asker.decided + asker.late


LATE = {
    "dropped and late": {"outcome": ingest_pb2.OUTCOME_DROPPED, "reason": "deadline", "late": True},
    "scored and late": {"outcome": ingest_pb2.OUTCOME_SCORED, "reason": "deadline", "late": True},
    "dropped": {"outcome": ingest_pb2.OUTCOME_DROPPED, "reason": "deadline"},
}


@pytest.mark.parametrize("said", LATE.values(), ids=LATE.keys())
def test_a_sidecar_that_says_it_was_late_itself_speaks_for_the_policy(server, asker, said):
    allow = ingest_pb2.ACTION_ALLOW

    def late(batch):
        verdicts = [ingest_pb2.Verdict(request_id=one, action=allow) for one in batch.segments.request_ids]
        return ingest_pb2.StepResult(verdicts=verdicts, **said)

    server.reply = late
    answer = asker.ask(two(), LONG_S)
    assert answer.verdicts == {"good": Advice(Action.ALLOW), "bad": Advice(Action.ALLOW)}
    assert (answer.decided_by, answer.why) == (DecidedBy.DEADLINE, "deadline")
    assert counts(asker) == (1, 0, 1, 0)


UNDECIDED = {
    "dropped without verdicts": lambda _: ingest_pb2.StepResult(outcome=ingest_pb2.OUTCOME_DROPPED, reason="ladder"),
    "scored without verdicts": lambda _: ingest_pb2.StepResult(outcome=ingest_pb2.OUTCOME_SCORED),
    "nothing": lambda _: b"",
    "no protobuf": lambda _: b"\xff\xff",
}


@pytest.mark.parametrize("reply", UNDECIDED.values(), ids=UNDECIDED.keys())
def test_an_answer_without_verdicts_is_none(server, asker, reply):
    server.reply = reply
    fell_back(asker.ask(two(), LONG_S), "")
    assert counts(asker) == (1, 0, 1, 0)


def test_a_request_that_is_not_spoken_of_gets_the_policys_answer_and_the_others_their_own(server, asker):
    def half(batch):
        result = judged(batch)
        result.verdicts[1].action = 99  # of a newer sidecar
        return result

    server.reply = half
    answer = asker.ask(two(), LONG_S)
    assert {name: one.action for name, one in answer.verdicts.items()} == {"good": Action.ALLOW, "bad": Action.BLOCK}
    assert answer.decided_by is DecidedBy.DEADLINE
    assert answer.verdicts["bad"] == Advice(Action.BLOCK)


def test_a_batch_that_is_refused_is_the_callers_mistake_and_counted_apart(server, asker):
    def refuse(_):
        raise PermissionError("bad_shape")

    server.reply = refuse
    fell_back(asker.ask(two(), LONG_S), "INVALID_ARGUMENT: bad_shape")
    assert counts(asker) == (1, 0, 0, 1)


def test_many_threads_ask_at_once_and_none_gets_anothers_answer(server, asker):
    def ask(number):
        return asker.ask(wire_batch(requests=[(f"request-{number}", (0,))]), LONG_S)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(64)))
    assert [list(answer.verdicts) for answer in answers] == [[f"request-{number}"] for number in range(64)]
    assert counts(asker) == (64, 64, 0, 0)


def test_open_questions_are_answered_when_the_asker_stops(server, asker):
    over = threading.Event()
    server.reply = lambda _: over.wait(DEADLINE_S) and None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asker.ask, two(), LONG_S)
        assert server.came.wait(DEADLINE_S)
        asker.stop()
        asker.stop()
        fell_back(asked.result(DEADLINE_S), "CANCELLED")
        over.set()
    with pytest.raises(RuntimeError, match="start"):
        asker.ask(two(), LONG_S)


@pytest.mark.parametrize("within_s", [0.0, -1.0, float("nan"), float("inf"), 3601.0])
def test_a_time_that_is_none_is_an_error_of_the_caller(asker, within_s):
    with pytest.raises(ValueError, match="within_s"):
        asker.ask(two(), within_s)
    assert counts(asker) == (0, 0, 0, 0)


@pytest.mark.parametrize("action", ["flag", "escalate", "deny"])
def test_the_answer_at_the_deadline_is_open_or_closed_and_nothing_between(action):
    with pytest.raises(ValueError):
        Asker("unix:/nowhere.sock", action)


@pytest.mark.process
def test_a_frozen_sidecar_is_not_waited_for(address, asker):
    script = f"import tests.test_ask as t, threading; s = t.Server({address!r}); print(1, flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            assert asker.ask(two(), LONG_S).decided_by is DecidedBy.SIDECAR
            os.kill(process.pid, signal.SIGSTOP)
            start = time.monotonic()
            fell_back(asker.ask(two(), SHORT_S), "DEADLINE_EXCEEDED")
            assert SHORT_S <= time.monotonic() - start < 10 * SHORT_S
            os.kill(process.pid, signal.SIGCONT)
            assert asker.ask(two(), LONG_S).decided_by is DecidedBy.SIDECAR
        finally:
            process.kill()
