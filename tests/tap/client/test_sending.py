"""What is handed to the client is sent once, and what becomes of it is counted."""

from __future__ import annotations

import socket

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.client import TapClient
from sidecar.types import TapLedgerCounts, UnseenReason
from tests.tap.clients import MakeClient, connected
from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import Receiver, control
from tests.tap.samples import IDENTITY, BrokenStates, captured, segment, states, step
from tests.waiting import until


def test_without_a_sidecar_every_step_is_dropped_and_counted(make_client: MakeClient) -> None:
    client = make_client()
    assert [client.submit(step(rows=3)) for _ in range(5)] == [False] * 5
    assert client.counts() == TapLedgerCounts(dropped=5)
    assert client.traffic.counts().unseen == ((UnseenReason.TAP_DROPPED, 15),)
    assert not client.connected


def test_a_step_is_sent_once_and_acknowledged(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client())
    assert client.submit(step("a", rows=2, number=9))
    until(lambda: client.counts().ok == 1)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)
    (batch,) = receiver.batches
    assert (batch.engine_id, batch.step, list(batch.segments.request_ids)) == ("engine", 9, ["a"])
    (registration,) = receiver.registrations
    assert (registration.engine_id, registration.model.name, registration.model.width) == ("engine", "tiny", 8)


def test_a_refused_batch_is_counted_and_the_next_one_goes_through(receiver: Receiver, make_client: MakeClient) -> None:
    def refuse_b(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        refused = batch.segments.request_ids[0] == "b"
        outcome = ingest_pb2.OUTCOME_REJECTED if refused else ingest_pb2.OUTCOME_DROPPED
        return ingest_pb2.StepResult(batch_id="" if refused else batch.batch_id, outcome=outcome, reason="non_finite")

    receiver.answer = refuse_b
    client = connected(make_client())
    for name in ("a", "b", "c"):
        assert client.submit(step(name))
    until(lambda: client.counts().ok == 2)
    assert client.counts() == TapLedgerCounts(sent=3, ok=2, refused=1)


def test_what_was_not_answered_is_unknown_and_is_never_sent_again(
    make_receiver: MakeReceiver, make_client: MakeClient
) -> None:
    first = make_receiver(control())
    first.answer = lambda _batch: None
    client = connected(make_client())
    for i in range(3):
        assert client.submit(step("lost", i, 2))
    first.wait(lambda r: len(r.batches) == 3)
    first.stop()
    until(lambda: client.counts().unknown == 3)
    until(lambda: not client.connected)
    second = make_receiver(control())
    connected(client)
    assert client.submit(step("new"))
    until(lambda: client.counts().ok == 1)
    assert [b.segments.request_ids[0] for b in second.batches] == ["new"]
    assert client.counts() == TapLedgerCounts(sent=4, ok=1, unknown=3)
    assert (UnseenReason.TAP_DROPPED, 6) in client.traffic.counts().unseen
    assert len({b.batch_id for b in first.batches + second.batches}) == 4


def test_a_sidecar_that_owes_answers_too_long_is_given_up(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(answer_s=0.2))
    receiver.answer = lambda _batch: None
    assert client.submit(step())
    until(lambda: client.counts().unknown == 1)
    receiver.wait(lambda r: len(r.registrations) == 2)


def test_states_that_cannot_be_encoded_cost_their_own_step_only(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client())
    broken = BrokenStates(states(2).rows)
    assert client.submit(captured((segment("broken", range(2)),), broken))
    assert client.submit(step("sound"))
    until(lambda: client.counts().ok == 1)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1, dropped=1)
    assert client.traffic.counts().unseen == ((UnseenReason.TAP_DROPPED, 2),)
    assert client.errors == 1


def test_an_address_can_be_a_port_as_well() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    receiver = Receiver(address, control())
    receiver.start()
    client = TapClient(address, IDENTITY, engine_id="engine")
    client.start()
    try:
        connected(client)
        assert client.submit(step())
    finally:
        client.stop(10.0)
        receiver.stop()
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)


def test_a_client_that_was_never_started_stops_and_drops() -> None:
    client = TapClient("unix:/nowhere.sock", IDENTITY, engine_id="engine")
    assert not client.submit(step())
    client.stop()
    assert client.counts() == TapLedgerCounts(dropped=1)


def test_a_verdict_is_passed_on_and_a_listener_that_fails_is_counted(
    receiver: Receiver, make_client: MakeClient
) -> None:
    def answer(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        result = ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED)
        for name, action in (
            ("a", ingest_pb2.ACTION_ALLOW),
            ("b", ingest_pb2.ACTION_BLOCK),
            ("c", ingest_pb2.ACTION_FLAG),
        ):
            verdict = result.verdicts.add(request_id=name, action=action)
            verdict.signals.add(name=f"signal-{name}", score=0.9, threshold=0.5)
        return result

    def fails(*_: object) -> None:
        raise RuntimeError("a listener's bug")

    receiver.answer = answer
    client = connected(make_client())
    heard: list[tuple[str, str, tuple[str, ...]]] = []
    client.on_verdict(fails)
    client.on_verdict(lambda *told: heard.append(told))
    for number in range(2):
        assert client.submit(step("r", number))
    until(lambda: client.counts().ok == 2)
    until(lambda: len(heard) == 4)
    assert heard == [("b", "block", ("signal-b",)), ("c", "flag", ("signal-c",))] * 2
    assert client.errors == 4
    assert client.connected
