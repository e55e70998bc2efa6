from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.batch import MESSAGE_ROWS
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.tap.traffic import StepTally, TrafficMeter
from sidecar.types import SamplingPolicy, TapLedgerCounts, UnseenReason
from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import Receiver, blocks, control
from tests.tap.ring_host import DEADLINE_S, SHAPE
from tests.tap.samples import IDENTITY, BrokenStates, captured, segment, states, step

MakeClient = Callable[..., TapClient]


@pytest.fixture(params=["grpc", "ring"])
def transport(request: pytest.FixtureRequest) -> str:
    """Every claim holds for both ways."""
    return str(request.param)


@pytest.fixture
def make_client(address: str) -> Iterator[MakeClient]:
    made: list[TapClient] = []

    def make(traffic: TrafficMeter | None = None, **limits: float) -> TapClient:
        bounds = LinkLimits(**limits)  # type: ignore[arg-type]  # ints and floats, as named
        client = TapClient(address, IDENTITY, engine_id="engine", traffic=traffic, limits=bounds)
        made.append(client)
        client.start()
        return client

    yield make
    for client in made:
        client.stop(1.0)


def until(condition: Callable[[], object]) -> None:
    """Poll what no condition variable tells, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        waiting.wait(0.005)


def _connected(client: TapClient) -> TapClient:
    until(lambda: client.connected)
    return client


def _window(transport: str, unanswered: int) -> int:
    """How many messages may be unanswered."""
    return SHAPE.slots if transport == "ring" else unanswered


def _balanced(counts: TapLedgerCounts) -> bool:
    return counts.sent == counts.ok + counts.refused + counts.unknown


def test_without_a_sidecar_every_step_is_dropped_and_counted(make_client: MakeClient) -> None:
    client = make_client()
    assert [client.submit(step(rows=3)) for _ in range(5)] == [False] * 5
    assert client.counts() == TapLedgerCounts(dropped=5)
    assert client.traffic.counts().unseen == ((UnseenReason.TAP_DROPPED, 15),)
    assert not client.connected


def test_a_step_is_sent_once_and_acknowledged(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client())
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
    client = _connected(make_client())
    for name in ("a", "b", "c"):
        assert client.submit(step(name))
    until(lambda: client.counts().ok == 2)
    assert client.counts() == TapLedgerCounts(sent=3, ok=2, refused=1)


def test_what_was_not_answered_is_unknown_and_is_never_sent_again(
    make_receiver: MakeReceiver, make_client: MakeClient
) -> None:
    first = make_receiver(control())
    first.answer = lambda _batch: None
    client = _connected(make_client())
    for i in range(3):
        assert client.submit(step("lost", i, 2))
    first.wait(lambda r: len(r.batches) == 3)
    first.stop()
    until(lambda: client.counts().unknown == 3)
    until(lambda: not client.connected)
    second = make_receiver(control())
    _connected(client)
    assert client.submit(step("new"))
    until(lambda: client.counts().ok == 1)
    assert [b.segments.request_ids[0] for b in second.batches] == ["new"]
    assert client.counts() == TapLedgerCounts(sent=4, ok=1, unknown=3)
    assert (UnseenReason.TAP_DROPPED, 6) in client.traffic.counts().unseen
    assert len({b.batch_id for b in first.batches + second.batches}) == 4


def test_a_frozen_sidecar_costs_the_engine_no_wait_and_the_tap_no_memory(
    receiver: Receiver, make_client: MakeClient, transport: str
) -> None:
    window = _window(transport, 2)
    client = _connected(make_client(queue_batches=50, queue_bytes=1 << 20, unanswered=2))
    receiver.freeze()
    row = step(rows=16, columns=64)  # 4 KiB
    taken = slowest_s = 0.0
    for _ in range(2000):
        start_s = time.perf_counter()
        taken += client.submit(row)
        slowest_s = max(slowest_s, time.perf_counter() - start_s)
    assert taken <= 50 + window  # what waits and what is unanswered
    assert slowest_s < 1.0  # a submit that waits for the receiver would wait for ever: it is still frozen
    until(lambda: client.counts().dropped + client.counts().sent == 2000)  # what waits is let go, still frozen
    assert client.counts().sent <= window
    until(lambda: client.congested)
    receiver.thaw()
    until(lambda: client.counts().ok == client.counts().sent and not client.congested)
    assert client.submit(row)
    until(lambda: client.counts().sent + client.counts().dropped == 2001)
    until(lambda: client.counts().ok == client.counts().sent)
    assert client.traffic.counts().unseen == ((UnseenReason.TAP_DROPPED, 16 * client.counts().dropped),)
    assert len({batch.batch_id for batch in receiver.batches}) == client.counts().sent


def test_behind_a_slow_sidecar_no_step_waits_longer_than_it_may(receiver: Receiver, make_client: MakeClient) -> None:
    """Offered at ten times what is answered: the queue does not grow, the goodput is that of the sidecar."""
    turn = threading.Semaphore(0)

    def slow(batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        assert turn.acquire(timeout=DEADLINE_S)
        waits_s.append((time.time_ns() - batch.taken_ns) / 1e9)
        return ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED)

    waits_s: list[float] = []
    receiver.answer = slow
    client = _connected(make_client(queue_s=0.05, unanswered=1))
    offered = copied = 0
    while len(waits_s) < 40:
        offered += 1
        if not client.congested:
            copied += 1
            client.submit(step("r", offered))
        if offered % 10 == 0:
            turn.release()
        threading.Event().wait(0.002)
    for _ in range(100):
        turn.release()
    until(
        lambda: client.counts().sent == client.counts().ok and client.counts().sent + client.counts().dropped == copied
    )
    assert copied < offered / 2  # most were not even copied
    assert sorted(waits_s)[len(waits_s) // 2] < 1.0


def test_the_queue_is_bounded_in_bytes_too(receiver: Receiver, make_client: MakeClient, transport: str) -> None:
    client = _connected(make_client(queue_batches=1000, queue_bytes=10_000, unanswered=1))
    receiver.freeze()
    taken = sum(client.submit(step(rows=16, columns=64)) for _ in range(100))
    assert taken <= 2 + _window(transport, 1)  # 4 KiB each: two wait, the others are unanswered


def test_a_step_larger_than_the_whole_queue_goes_when_the_queue_is_empty(
    receiver: Receiver, make_client: MakeClient
) -> None:
    client = _connected(make_client(queue_bytes=1000, unanswered=1))
    big = step("big", rows=MESSAGE_ROWS + 8)
    assert big.nbytes > 1000
    assert client.submit(big)
    until(lambda: client.counts().ok == 2)
    sizes = [len(batch.segments.positions) for batch in receiver.batches]
    assert sizes == [MESSAGE_ROWS, 8]
    assert client.counts() == TapLedgerCounts(sent=2, ok=2)


def test_behind_a_step_larger_than_the_whole_queue_nothing_waits(
    receiver: Receiver, make_client: MakeClient, transport: str
) -> None:
    client = _connected(make_client(queue_bytes=1000, unanswered=1, queue_s=60))
    receiver.freeze()
    taken = [client.submit(step("big", rows=64)) for _ in range(20)]
    assert 1 <= sum(taken) <= _window(transport, 1) + 1  # unanswered, and one that waits
    receiver.thaw()
    until(lambda: client.counts().ok == sum(taken))
    assert client.counts().dropped == 20 - sum(taken)


def test_a_stream_begins_with_a_report(receiver: Receiver, make_client: MakeClient) -> None:
    _connected(make_client(report_s=3600))
    receiver.wait(lambda r: r.requests)
    assert receiver.requests[0].WhichOneof("body") == "traffic"


def test_a_sidecar_that_owes_answers_too_long_is_given_up(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client(answer_s=0.2))
    receiver.answer = lambda _batch: None
    assert client.submit(step())
    until(lambda: client.counts().unknown == 1)
    receiver.wait(lambda r: len(r.registrations) == 2)


def test_a_report_never_runs_ahead_of_the_batches_that_it_counts(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client(report_s=0.002, queue_batches=10_000))
    steps = 0
    while len(receiver.reports) < 8:
        steps += 1
        tally = StepTally(tokens=3, requests=0)
        tally.miss(UnseenReason.SAMPLING, 1)
        if client.submit(step("r", 2 * steps, 2)):
            client.traffic.add(tally)
    seen = 0
    for request in receiver.requests:
        if request.HasField("step_batch"):
            seen += 2
        elif request.HasField("traffic"):
            assert request.traffic.tokens_computed - sum(u.tokens for u in request.traffic.unseen) <= seen
    assert receiver.reports[-1].tokens_computed > receiver.reports[0].tokens_computed


def test_reports_come_without_any_batch(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client(report_s=0.02))
    client.traffic.add(StepTally(7, 2, {UnseenReason.UNSUPPORTED: 7}))
    receiver.wait(lambda r: r.reports and r.reports[-1].tokens_computed == 7)
    assert (receiver.reports[-1].requests, receiver.unseen) == (2, {UnseenReason.UNSUPPORTED: 7})


def test_registration_carries_what_the_engine_had_computed_before(receiver: Receiver, make_client: MakeClient) -> None:
    traffic = TrafficMeter()
    traffic.add(StepTally(100, 4))
    _connected(make_client(traffic))
    assert receiver.registrations[-1].traffic.tokens_computed == 100


def test_stop_delivers_what_waits_and_says_goodbye_with_the_final_ledger(
    receiver: Receiver, make_client: MakeClient
) -> None:
    client = _connected(make_client())
    for i in range(100):
        assert client.submit(step("r", i))
    client.finish(["r"])
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes)
    assert client.counts() == TapLedgerCounts(sent=100, ok=100)
    kinds = [request.WhichOneof("body") for request in receiver.requests]
    assert kinds[-2:] == ["traffic", "goodbye"]
    assert (receiver.reports[-1].tap.sent, receiver.reports[-1].tap.ok) == (100, 100)
    assert kinds.index("finished") > max(i for i, kind in enumerate(kinds) if kind == "step_batch")
    assert not client.submit(step())
    client.stop(10.0)


def test_stop_keeps_its_time_with_a_frozen_sidecar(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client())
    receiver.freeze()
    for i in range(20):
        client.submit(step("r", i))
    start_s = time.monotonic()
    client.stop(0.3)
    assert time.monotonic() - start_s < 5
    until(lambda: _balanced(client.counts()))
    assert client.counts().sent + client.counts().dropped == 20


def test_settings_follow_the_sidecar(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client())
    receiver.push(control((2, 5), fraction=0.5, stride=3, generation=9))
    until(lambda: client.settings.plan_generation == 9)
    assert client.settings.tap_points == blocks(2, 5)
    assert client.policy == SamplingPolicy(0.5, 3)


def test_a_refused_registration_is_tried_again(receiver: Receiver, make_client: MakeClient) -> None:
    receiver.refuse_registration = grpc.StatusCode.FAILED_PRECONDITION
    client = make_client()
    receiver.wait(lambda r: len(r.registrations) >= 2)
    assert not client.connected
    receiver.refuse_registration = None
    _connected(client)


def test_states_that_cannot_be_encoded_cost_their_own_step_only(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client())
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
        _connected(client)
        assert client.submit(step())
    finally:
        client.stop(10.0)
        receiver.stop()
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)


def test_a_client_that_was_let_go_says_goodbye_by_itself(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client())
    assert client.submit(step())
    client.end_soon()
    receiver.wait(lambda r: r.goodbyes == 1)
    assert client.counts() == TapLedgerCounts(sent=1, ok=1)


def test_stopping_while_connecting_says_goodbye_too(make_receiver: MakeReceiver, make_client: MakeClient) -> None:
    """Once registered, an engine that leaves without a word is taken for lost."""
    receiver = make_receiver(control())
    client = make_client()
    receiver.wait(lambda r: r.registrations)
    client.stop(10.0)
    receiver.wait(lambda r: r.goodbyes == 1)


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
    client = _connected(make_client())
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


def test_ends_of_requests_that_nobody_can_be_told_are_counted(make_client: MakeClient) -> None:
    client = make_client()
    client.finish(["a", "b"])
    client.finish([])
    assert client.ends_lost == 2


def test_ends_of_requests_that_find_the_queue_full_are_counted(receiver: Receiver, make_client: MakeClient) -> None:
    client = _connected(make_client(queue_batches=2))
    receiver.freeze()
    given = 50
    for i in range(given):
        client.submit(step("r", i))
        client.finish([f"r{i}"])
    assert 0 < client.ends_lost < given
    receiver.thaw()
