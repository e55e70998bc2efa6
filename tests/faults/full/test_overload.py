"""More than the sidecar can take: the tap gives way, what is taken is scored, and nothing is lost unseen."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

import psutil
import pytest

from tests.faults.full.driven import Driver, Sets, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import Watch, ledger, reconcile

pytestmark = pytest.mark.timeout(90 + 4 * SCALE.overload_s)
RECOVERY_S = 5.0
TRANSPORTS = ("ring", "grpc")
GOAL = {2: 0.9, 10: 0.7}  # share of capacity that is scored, by overload
FLOOR = {2: 0.6, 10: 0.4}  # with room for a machine whose cores share their arithmetic, and for other people's work
ON_THEIR_WAY = RING_SLOTS + WORKERS


@dataclass(frozen=True)
class Rate:
    """Batches scored a second, and a second of the worker's CPU."""

    per_s: float
    per_cpu_s: float


class Meter:
    """Measures phases of one driver against one worker."""

    def __init__(self, driver: Driver, worker_pid: int) -> None:
        self._driver = driver
        self._worker = psutil.Process(worker_pid)

    def run(self, name: str, rate: float, seconds: float) -> Rate:
        """The first fifth of a phase is left out: what was under way before belongs to that."""
        self._driver.phase(name, rate)
        pause(seconds / 5)
        begun_s, cpu_s = time.monotonic(), self._cpu_s()
        pause(4 * seconds / 5)
        ended_s, used_s = time.monotonic(), self._cpu_s() - cpu_s
        scored = self._driver.sets().scored_between(begun_s, ended_s)
        return Rate(scored / (ended_s - begun_s), scored / used_s)

    def _cpu_s(self) -> float:
        used = self._worker.cpu_times()
        return used.user + used.system


def mean(one: Rate, other: Rate) -> Rate:
    return Rate((one.per_s + other.per_s) / 2, (one.per_cpu_s + other.per_cpu_s) / 2)


def recovered_s(driver: Driver, name: str, rate: float) -> float:
    """How long after the overload the last step was dropped, on either side."""
    driver.phase(name, rate)
    begun_s = driver.sets().phases[name]
    while True:
        pause(0.25)
        last_s = max(begun_s, last_drop_s(driver.sets()))
        if time.monotonic() - last_s > 1.0:
            return last_s - begun_s
        assert time.monotonic() - begun_s < RECOVERY_S + 1.0, "still dropping"


def last_drop_s(sets: Sets) -> float:
    """When a step was last dropped, by the tap or by the sidecar; 0 for never."""
    theirs = (answer.at_s for answer, *_ in sets.answers.values() if answer.outcome == "dropped")
    return max((*(at_s for at_s, _ in sets.drops), *theirs), default=0.0)


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_overload_costs_the_rest_and_not_what_is_taken(home, record, transport, times):
    with heavy_sidecar(home) as process, Watch(process, most=ON_THEIR_WAY) as watch:
        with Driver(way(home, transport), home / "journal", model=HEAVY).ready() as driver:
            meter = Meter(driver, process.worker_pid)
            before = meter.run("before", 0, SCALE.capacity_s)
            overload = meter.run("overload", times * before.per_s, SCALE.overload_s)
            recovery_s = recovered_s(driver, "recovery", before.per_s / 4)
            capacity = mean(before, meter.run("after", 0, SCALE.capacity_s))
            report, sets = driver.end(), driver.sets()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    counts, _ = ledger(home)
    reconcile(counts, sets)
    assert counts.received == len(sets.sent) == report["sent"]
    assert counts.dropped.keys() <= {"deadline", "ladder"}
    assert not counts.rejected
    assert not sets.unknown
    assert report["dropped"] > 0
    goodput = overload.per_s / capacity.per_s
    assert overload.per_cpu_s >= FLOOR[times] * capacity.per_cpu_s  # however much of the machine others take
    assert goodput >= FLOOR[times] / 2
    record(
        "overload",
        f"{times} x capacity, {transport}",
        "only the tap dropped; identity exact",
        {f"goodput >= {GOAL[times]}": goodput >= GOAL[times]},
        capacity_per_s=capacity.per_s,
        goodput=goodput,
        goodput_per_worker_cpu=overload.per_cpu_s / capacity.per_cpu_s,
        tap_dropped=report["dropped"],
        recovery_s=recovery_s,
        scrapes=watch.scrapes,
        most_in_flight=watch.most_in_flight,
    )


def test_down_the_ladder_and_up_again_every_row_is_booked(home, record):
    """A budget that no step can keep: the ladder goes to its end. Then there is room, and it comes back to full."""
    ladder = ("ladder.window_s=0.1", "ladder.up_s=0.3", "ladder.max_up_s=0.3")
    flags = [word for one in ("budget.step_ms=0.05", *ladder) for word in ("--set", one)]
    with heavy_sidecar(home, *flags) as process, Watch(process, most=ON_THEIR_WAY):
        with Driver(way(home, "ring"), home / "journal", model=HEAVY).ready() as driver:
            driver.phase("overload", 0)
            driver.until(lambda sets: sets.reasons("dropped")["ladder"] > 50)
            driver.phase("again", 10)
            again_s = driver.served_s(driver.sets().phases["again"])
            driver.end()
            sets = driver.sets()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    counts, rows = ledger(home)
    reconcile(counts, sets)
    assert set(counts.dropped) == {"ladder"}
    assert set(rows.dropped) == {"ladder"}
    assert rows.received == rows.outcomes
    assert rows.dropped["ladder"] > counts.dropped["ladder"]  # of scored batches, too
    record("overload", "a budget that no step keeps", "dropped{ladder}, and back", scored_again_s=again_s)
