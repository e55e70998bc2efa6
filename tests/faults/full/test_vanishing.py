"""Engines that are killed in the middle of a step: what arrived is booked, and nothing of theirs stays."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack

import pytest

from tests.faults.full.driven import Driver, Sets, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.processes import Holdings, until
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import Watch, ledger, reconcile

pytestmark = pytest.mark.timeout(120 + 6 * SCALE.vanished)
WARM = 3  # rounds after which pools and free lists have their size
SPARE_BYTES = 32 << 20


def test_engines_that_vanish_leave_their_batches_booked_and_nothing_else(home, record):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    moment = random.Random(seed)
    journals: list[Sets] = []
    with heavy_sidecar(home) as process, Watch(process, most=2 * (RING_SLOTS + WORKERS)):
        pids = (process.pid, process.worker_pid)
        for number in range(WARM):
            journals += _vanish(home, number, moment.uniform(0.0, 0.3))
            pause(1.0)
        settled = [Holdings.of(pid) for pid in pids]
        for number in range(WARM, WARM + SCALE.vanished):
            journals += _vanish(home, number, moment.uniform(0.0, 0.3))
            until(lambda: _clean(pids, settled), 10.0, lambda: (settled, [Holdings.of(pid) for pid in pids]))
        grown = sum(Holdings.of(pid).rss_bytes - before.rss_bytes for pid, before in zip(pids, settled, strict=True))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    counts, rows = ledger(home)
    reconcile(counts, *journals)
    assert rows.received == rows.outcomes
    assert set(counts.dropped) <= {"deadline"}
    assert grown < SPARE_BYTES
    record(
        "vanishing client",
        f"{2 * SCALE.vanished} engines killed in mid-stream, half by ring, half by gRPC",
        "what arrived is booked; no descriptor, thread or ring more",
        batches=counts.received,
        unanswered=sum(len(sets.unknown) for sets in journals),
        grown_mib=grown / 2**20,
    )


def _vanish(home, number: int, after_s: float) -> list[Sets]:
    """One engine by each transport, killed at the same moment; each comes back under its own name in the next round."""
    ways = {"ring": home / f"ring-{number}", "grpc": home / f"grpc-{number}"}
    with ExitStack() as stack:
        drivers = [
            stack.enter_context(Driver(way(home, name), journal, engine=name, model=HEAVY))
            for name, journal in ways.items()
        ]
        for driver in drivers:
            driver.ready().phase("load", 0)
        pause(after_s)
        for driver in drivers:
            driver.kill()
    return [driver.sets() for driver in drivers]


def _clean(pids: tuple[int, ...], settled: list[Holdings]) -> bool:
    return all(Holdings.of(pid).within(before) for pid, before in zip(pids, settled, strict=True))
