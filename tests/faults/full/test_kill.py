"""Killed at any moment under load: it is back in seconds, and nothing is lost from the books of the data directory."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from statistics import median

import psutil
import pytest

from tests.faults.full.driven import Driver, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.processes import until
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import ledger, reconcile

pytestmark = pytest.mark.timeout(120 + 20 * SCALE.kills)
READY_S = 3.0
BUSY = 2.0  # beside other people's work it may take so many times as long
AT_ONCE = 2 * WORKERS  # received and without an outcome at the moment of a kill, at most
EX_SOFTWARE = 70


def test_killed_at_random_moments_it_is_ready_in_seconds_and_the_books_close(home, record):
    """The whole of it, its control process alone, its worker alone, in turn; two engines go on all the time."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    moment = random.Random(seed)
    ready_s: list[float] = []
    lost = 0
    with ExitStack() as stack:
        drivers: list[Driver] = []
        for number in range(SCALE.kills):
            with heavy_sidecar(home) as process:
                ready_s.append(process.ready_s)
                lost += process.killed_before
                if not drivers:
                    for name in ("ring", "grpc"):
                        driver = Driver(way(home, name), home / name, engine=name, model=HEAVY)
                        drivers.append(stack.enter_context(driver).ready())
                    for driver in drivers:
                        driver.phase("load", 0)
                up_s = time.monotonic()
                for driver in drivers:
                    driver.served_s(up_s)
                pause(moment.uniform(0.0, 0.5))
                _kill(process, ("all", "control", "worker")[number % 3])
        with heavy_sidecar(home) as process:
            lost += process.killed_before
            up_s = time.monotonic()
            for driver in drivers:
                driver.served_s(up_s)
            reports = [driver.end() for driver in drivers]
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        journals = [driver.sets() for driver in drivers]
    counts, rows = ledger(home)
    reconcile(counts, *journals, killed=AT_ONCE * SCALE.kills)
    assert counts.dropped["process_killed"] == lost
    assert rows.received == rows.outcomes
    unknown = sum(len(sets.unknown) for sets in journals)
    # An answer that comes when the tap has given the stream up is in the journal, and to the tap unknown.
    assert unknown <= sum(report["unknown"] for report in reports) <= (RING_SLOTS + 4) * SCALE.kills
    assert median(ready_s) < BUSY * READY_S, ready_s
    record(
        "SIGKILL",
        f"{SCALE.kills} kills at random moments, seed {seed}",
        "the identity holds over all lives; sets of ids reconcile",
        {f"ready again within {READY_S:g} s": max(ready_s) <= READY_S},
        batches=counts.received,
        booked_killed=counts.dropped["process_killed"],
        unanswered=unknown,
        ready_median_s=median(ready_s),
        ready_worst_s=max(ready_s),
    )


def _kill(process, victim: str) -> None:
    """Nothing of it may be left, and a control process without its worker gives up with a status that asks for another."""
    worker = psutil.Process(process.worker_pid)
    if victim in ("all", "control"):
        process.signal(signal.SIGKILL)
    if victim in ("all", "worker"):
        os.kill(worker.pid, signal.SIGKILL)
    status = process.wait(10.0)
    assert status == (EX_SOFTWARE if victim == "worker" else -signal.SIGKILL)
    if victim == "worker":
        assert process.event("worker_lost")["status"] == -signal.SIGKILL
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 5.0)
