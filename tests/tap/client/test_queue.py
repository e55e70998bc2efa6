"""What waits for the sidecar is bounded, in steps, bytes and seconds, and never waited for."""

from __future__ import annotations

import threading
import time

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.batch import MESSAGE_ROWS
from sidecar.types import TapLedgerCounts, UnseenReason
from tests.tap.clients import MakeClient, connected
from tests.tap.receiver import Receiver
from tests.tap.ring_host import DEADLINE_S, SHAPE
from tests.tap.samples import step
from tests.waiting import until


def _window(transport: str, unanswered: int) -> int:
    """How many messages may be unanswered."""
    return SHAPE.slots if transport == "ring" else unanswered


def test_a_frozen_sidecar_costs_the_engine_no_wait_and_the_tap_no_memory(
    receiver: Receiver, make_client: MakeClient, transport: str
) -> None:
    window = _window(transport, 2)
    client = connected(make_client(queue_batches=50, queue_bytes=1 << 20, unanswered=2))
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
    client = connected(make_client(queue_s=0.05, unanswered=1))
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
    client = connected(make_client(queue_batches=1000, queue_bytes=10_000, unanswered=1))
    receiver.freeze()
    taken = sum(client.submit(step(rows=16, columns=64)) for _ in range(100))
    assert taken <= 2 + _window(transport, 1)  # 4 KiB each: two wait, the others are unanswered


def test_a_step_larger_than_the_whole_queue_goes_when_the_queue_is_empty(
    receiver: Receiver, make_client: MakeClient
) -> None:
    client = connected(make_client(queue_bytes=1000, unanswered=1))
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
    client = connected(make_client(queue_bytes=1000, unanswered=1, queue_s=60))
    receiver.freeze()
    taken = [client.submit(step("big", rows=64)) for _ in range(20)]
    assert 1 <= sum(taken) <= _window(transport, 1) + 1  # unanswered, and one that waits
    receiver.thaw()
    until(lambda: client.counts().ok == sum(taken))
    assert client.counts().dropped == 20 - sum(taken)


def test_ends_of_requests_that_nobody_can_be_told_are_counted(make_client: MakeClient) -> None:
    client = make_client()
    client.finish(["a", "b"])
    client.finish([])
    assert client.ends_lost == 2


def test_ends_of_requests_that_find_the_queue_full_are_counted(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(queue_batches=2))
    receiver.freeze()
    given = 50
    for i in range(given):
        client.submit(step("r", i))
        client.finish([f"r{i}"])
    assert 0 < client.ends_lost < given
    receiver.thaw()
