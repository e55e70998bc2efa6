"""A batch that waited too long is dropped unread, and says so."""

from __future__ import annotations

import signal

import pytest

from tests.faults.full.driven import Driver, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, heavy_sidecar, way
from tests.faults.full.processes import frozen
from tests.faults.full.watch import Watch, ledger, reconcile

QUEUE_S = 0.5
TRIES = 6
# By the ring every slot has waited; by gRPC one message is with the worker, and the others have not been read from the socket.
WAITING = {"ring": RING_SLOTS, "grpc": 1}


@pytest.mark.parametrize("transport", WAITING)
def test_what_waited_past_its_time_is_dropped_unread(home, record, transport):
    with heavy_sidecar(home, "--set", f"budget.queue_s={QUEUE_S}") as process, Watch(process, most=RING_SLOTS + 1):
        with Driver(way(home, transport), home / "journal", model=HEAVY).ready() as driver:
            driver.phase("steps", 50)
            driver.until(lambda sets: len(sets.ended("scored")) >= 20)
            for _ in range(TRIES):  # the worker may be frozen with a batch in its hands, which has not waited
                with frozen(process.worker_pid):
                    stuck = driver.until(lambda sets: len(sets.unknown) >= WAITING[transport])
                    pause(2 * QUEUE_S)
                    stuck_ids = list(stuck.sent)[-WAITING[transport] :] if transport == "ring" else []
                    last_s = max(stuck.sent.values())
                driver.served_s(last_s + QUEUE_S)
                if _waited(driver.until(lambda _: True).ended("dropped"), stuck_ids, WAITING[transport]):
                    break
            driver.end()
            sets = driver.sets()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    counts, rows = ledger(home)
    reconcile(counts, sets)
    dropped = sets.ended("dropped")
    assert set(sets.reasons("dropped")) == {"deadline"}
    assert len(dropped) >= WAITING[transport]
    assert set(stuck_ids) <= dropped
    assert set(rows.dropped) == {"deadline"}
    assert all(sets.answers[one][0].generation == 0 for one in dropped)
    record("deadline", f"worker frozen {2 * QUEUE_S} s, {transport}", "D(deadline), unread", dropped=len(dropped))


def _waited(dropped: set[str], stuck: list[str], least: int) -> bool:
    return len(dropped) >= least and set(stuck) <= dropped
