"""A sidecar that is dead, frozen, slow or was never there: the engine's thread does not wait, and the tap comes back by itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.full.driven import Driver, pause
from tests.faults.full.heavy import HEAVY, RING_SLOTS, WORKERS, heavy_sidecar, way
from tests.faults.full.processes import frozen
from tests.faults.full.scale import SCALE
from tests.faults.full.watch import Watch, ledger, reconcile

pytestmark = pytest.mark.timeout(120 + 6 * SCALE.freeze_s)
RECOVERY_S = 5.0
RATE = 100.0
HEALTHY_S = 2.0
# 64 MiB may wait in the tap's queue; what malloc keeps of it, and gRPC's own buffers, come on top.
TAP_BYTES = 128 << 20


def phase_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in report["phases"] if one["name"] == name)


def unblocked(report: dict[str, Any], name: str, lasted_s: float) -> dict[str, Any]:
    """The engine went on at its own pace: no step waited for the sidecar, and the tap did no more for it than for a healthy one."""
    healthy, phase = phase_of(report, "healthy"), phase_of(report, name)
    assert phase["steps"] > 0.7 * RATE * lasted_s, (name, phase, lasted_s)
    assert phase["wall_us"]["max"] < 1e6 * lasted_s / 3, (name, phase)
    assert phase["cpu_us"]["p50"] < 2 * healthy["cpu_us"]["p50"], (name, phase, healthy)
    assert phase["rss_bytes"] - healthy["rss_bytes"] < TAP_BYTES, (name, phase, healthy)
    return phase


def told(phase: dict[str, Any]) -> dict[str, float]:
    made = {f"{kind}_{name}": phase[f"{kind}_us"][name] for kind in ("wall", "cpu") for name in ("p50", "p99", "p99.9")}
    return {f"{name}_us": value for name, value in made.items()}


@pytest.mark.parametrize("transport", ["ring", "grpc"])
def test_a_frozen_sidecar_costs_the_engine_nothing_and_is_found_again(home, record, transport):
    """All of it, its worker alone, its control process alone."""
    recoveries: dict[str, float] = {}
    lasted: dict[str, float] = {}
    with heavy_sidecar(home) as process, Watch(process, most=RING_SLOTS + WORKERS):
        victims = {"all": (process.pid, process.worker_pid), "worker": (process.worker_pid,), "control": (process.pid,)}
        with Driver(way(home, transport), home / "journal", model=HEAVY).ready() as driver:
            driver.phase("healthy", RATE)
            pause(HEALTHY_S)
            for name, pids in victims.items():
                with frozen(*pids):
                    driver.phase(name, RATE)
                    pause(SCALE.freeze_s)
                    woken_s = time.monotonic()
                    lasted[name] = woken_s - driver.sets().phases[name]
                driver.phase(f"after-{name}", RATE)
                recoveries[name] = driver.served_s(woken_s)
                pause(HEALTHY_S / 4)
            report, sets = driver.end(), driver.sets()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    reconcile(ledger(home)[0], sets)
    assert max(recoveries.values()) < RECOVERY_S, recoveries
    for name in victims:
        phase = unblocked(report, name, lasted[name])
        record("frozen", f"{name}, {transport}", "engine not held up", recovery_s=recoveries[name], **told(phase))


@pytest.mark.parametrize("transport", ["ring", "grpc"])
def test_a_sidecar_that_dies_and_one_that_comes_late_are_no_business_of_the_engine(home, record, transport):
    with Driver(way(home, transport), home / "journal", model=HEAVY, wait=False).ready() as driver:
        driver.phase("absent", RATE)
        pause(SCALE.freeze_s)
        absent_s = time.monotonic() - driver.sets().phases["absent"]
        with heavy_sidecar(home) as process:
            up_s = time.monotonic()
            driver.phase("healthy", RATE)
            found_s = driver.served_s(up_s)
            pause(HEALTHY_S)
            process.signal(signal.SIGKILL)
            assert process.gone(5.0)
            driver.phase("dead", RATE)
            pause(SCALE.freeze_s)
        dead_s = time.monotonic() - driver.sets().phases["dead"]
        with heavy_sidecar(home) as process:
            up_s = time.monotonic()
            again_s = driver.served_s(up_s)
            report, sets = driver.end(), driver.sets()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
    reconcile(ledger(home)[0], sets, killed=RING_SLOTS + WORKERS)
    assert max(found_s, again_s) < RECOVERY_S
    absent, dead = unblocked(report, "absent", absent_s), unblocked(report, "dead", dead_s)
    record("absent", f"from the start, {transport}", "engine not held up", recovery_s=found_s, **told(absent))
    record("dead", f"SIGKILL, {transport}", "engine not held up", recovery_s=again_s, **told(dead))


@contextmanager
def slowed(pid: int, run_s: float = 0.01, stop_s: float = 0.09) -> Iterator[None]:
    """The process gets a tenth of the time that it would."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with frozen(pid):
                ended.wait(stop_s)
            ended.wait(run_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("transport", ["ring", "grpc"])
def test_a_slow_sidecar_is_sent_less_and_holds_nothing_up(home, record, transport):
    with heavy_sidecar(home) as process, Watch(process, most=RING_SLOTS + WORKERS):
        with Driver(way(home, transport), home / "journal", model=HEAVY).ready() as driver:
            driver.phase("healthy", RATE)
            pause(HEALTHY_S)
            with slowed(process.worker_pid):
                driver.phase("slow", RATE)
                pause(SCALE.freeze_s)
            lasted_s = time.monotonic() - driver.sets().phases["slow"]
            woken_s = time.monotonic()
            driver.phase("after", RATE)
            assert driver.served_s(woken_s) < RECOVERY_S
            report, sets = driver.end(), driver.sets()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    reconcile(ledger(home)[0], sets)
    assert sets.scored_between(sets.phases["slow"], sets.phases["after"]) > 0
    record(
        "slow",
        f"worker gets a tenth of its time, {transport}",
        "engine not held up",
        **told(unblocked(report, "slow", lasted_s)),
    )
