"""What one peer's session answers when the answer itself is the trouble."""

from __future__ import annotations

import pytest

from probes.registry import load_folder
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.errors import OrderFailedError, WorkerBusyError, WorkerLostError
from sidecar.ingest.bugs import bug_teller
from sidecar.ingest.refusal import Refusal
from sidecar.log import Level, Log
from sidecar.ring import Kind, Taken
from sidecar.worker import orders
from sidecar.worker.orders import Orders
from sidecar.worker.session import Peer, Session
from tests.builders import wire_batch, write_control, write_probe
from tests.hot import Hot


def session(tmp_path, reply_bytes: int) -> Session:
    write_probe(tmp_path, "first", column=0)
    write_control(tmp_path)
    hot = Hot(SystemClock(), artifacts=load_folder(tmp_path, limit=9))
    hot.register()
    log = Log(hot.clock, Level.ERROR, write=lambda _: None)
    return Session(Peer(hot.pipeline, hot.decoder, hot.clock, log, bug_teller(log)), reply_bytes)


def taken(message: bytes) -> Taken:
    view = memoryview(message)
    return Taken(1, Kind.STREAM, view, view, SystemClock().monotonic_s())


def test_a_reply_that_its_slot_cannot_hold_loses_names_first_and_never_the_outcome(tmp_path):
    replies = []
    for room in (1 << 20, -1, 40):  # plenty, one byte too few, hardly any
        batch = wire_batch(requests=[(f"request-{i}", (0,)) for i in range(3)])
        batch.verdict_within_us = 10_000_000
        message = ingest_pb2.StreamRequest(step_batch=batch).SerializeToString()
        size = room if room > 0 else len(replies[0]) - 1
        replies.append(session(tmp_path / str(room), size).handle(taken(message)))
        assert len(replies[-1]) <= size
    whole, cut, bare = (ingest_pb2.StreamResponse.FromString(reply).result for reply in replies)
    assert {one.outcome for one in (whole, cut, bare)} == {ingest_pb2.OUTCOME_SCORED}
    assert all(one.skipped or one.read for one in whole.verdicts)
    assert [one.action for one in cut.verdicts] == [one.action for one in whole.verdicts]
    assert not any(one.skipped or one.read for one in cut.verdicts)
    assert not bare.verdicts


def test_an_order_that_is_not_answered_in_time_holds_up_nobody_for_longer_than_that():
    ours, theirs = orders.pair()
    given = Orders(ours)
    with pytest.raises(WorkerBusyError):
        given.give("publish", timeout_s=0.05)
    late, _ = orders.take(theirs)
    orders.answer(theirs, late)  # the answer to an order that was given up
    with pytest.raises(WorkerBusyError):
        given.give("publish", timeout_s=0.05)
    newest, _ = orders.take(theirs)
    orders.answer(theirs, newest, failed="KeyError")
    with pytest.raises(WorkerBusyError):  # that answer too came after its time
        given.give("publish", timeout_s=0.05)
    theirs.close()
    with pytest.raises(WorkerLostError):
        given.give("publish", timeout_s=0.05)
    given.close()


def test_an_order_that_ran_into_a_bug_says_so():
    ours, theirs = orders.pair()
    orders.answer(theirs, {"n": 1}, failed="KeyError")
    with pytest.raises(OrderFailedError, match="KeyError"):
        Orders(ours).give("bind", timeout_s=1.0)
    ours.close()
    theirs.close()


def test_a_refusal_can_be_raised_through_a_context_manager():
    from contextlib import contextmanager

    @contextmanager
    def through():
        yield

    with pytest.raises(Refusal, match="gone"), through():
        raise Refusal(14, "gone")
