"""Asked to end under load: what was taken is answered, booked and on disk; what was not taken is nobody's."""

from __future__ import annotations

import signal

from tests.faults.full.driven import Driver, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import Watch, ledger, of_stopped, reconcile

UNANSWERED = RING_SLOTS + 4  # of both taps, at any moment


def test_a_stop_under_load_by_ring_and_by_grpc_drains_and_adds_up(home, record):
    with (
        heavy_sidecar(home) as process,
        Driver(way(home, "ring"), home / "ring", engine="ring", model=HEAVY).ready() as by_ring,
        Driver(way(home, "grpc"), home / "grpc", engine="grpc", model=HEAVY).ready() as by_grpc,
    ):
        drivers = (by_ring, by_grpc)
        with Watch(process, most=2 * (RING_SLOTS + WORKERS)):
            for driver in drivers:
                driver.phase("load", 0)
            pause(SCALE.quiet_s)
        process.signal(signal.SIGTERM)
        status = process.wait()
        for driver in drivers:
            driver.phase("after", 100)
        reports = [driver.end() for driver in drivers]
        journals = [driver.sets() for driver in drivers]
    assert status == 0
    counts, rows = ledger(home)
    assert counts == of_stopped(process.event("stopped"), counts)
    assert counts.in_flight == rows.in_flight == 0
    reconcile(counts, *journals)
    unknown = sum(len(sets.unknown) for sets in journals)
    assert unknown <= sum(report["unknown"] for report in reports) <= UNANSWERED  # to the tap a late answer is none
    assert set(counts.dropped) <= {"shutting_down"}
    assert not counts.rejected
    record(
        "SIGTERM",
        "two engines at full speed, ring and gRPC",
        "exit 0; last line, ledger file and sets of ids agree",
        batches=counts.received,
        unanswered=unknown,
    )
