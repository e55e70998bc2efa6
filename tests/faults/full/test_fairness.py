"""Who sends ten times as much as another takes nothing from it."""

from __future__ import annotations

import signal

import pytest

from tests.faults.full.driven import Driver, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.scale import SCALE
from tests.faults.full.test_overload import Meter
from tests.faults.full.watch import Watch, ledger, reconcile

pytestmark = pytest.mark.timeout(60 + 4 * SCALE.quiet_s)


@pytest.mark.parametrize(("loud", "quiet"), [("ring", "ring"), ("grpc", "grpc"), ("ring", "grpc"), ("grpc", "ring")])
def test_beside_a_client_at_ten_times_its_rate_a_quiet_one_loses_nothing(home, record, loud, quiet):
    """The loud one alone offers more than there is room for."""
    with heavy_sidecar(home) as process, Watch(process, most=2 * (RING_SLOTS + WORKERS)):
        with (
            Driver(way(home, loud), home / "loud", engine="loud", model=HEAVY).ready() as shouting,
            Driver(way(home, quiet), home / "quiet", engine="quiet", model=HEAVY).ready() as whispering,
        ):
            whispering.phase("silent", -1)
            capacity = Meter(shouting, process.worker_pid).run("capacity", 0, SCALE.capacity_s)
            shouting.phase("load", 1.5 * capacity.per_s)
            whispering.phase("load", 0.15 * capacity.per_s)
            pause(SCALE.quiet_s)
            heard = whispering.end()
            refused = shouting.end()
            sets = [shouting.sets(), whispering.sets()]
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    begun_s = sets[1].phases["load"]
    sent = [one for one, at_s in sets[1].sent.items() if at_s >= begun_s]
    assert len(sent) > 0.05 * capacity.per_s * SCALE.quiet_s
    assert set(sent) <= sets[1].ended("scored")
    assert not [drop for drop in sets[1].drops if drop[0] >= begun_s]
    assert refused["dropped"] > 0
    reconcile(ledger(home)[0], *sets)
    record(
        "fairness",
        f"loud by {loud}, quiet by {quiet}",
        "the quiet one lost nothing",
        quiet_sent=len(sent),
        quiet_dropped=heard["dropped"],
        loud_dropped=refused["dropped"],
    )
