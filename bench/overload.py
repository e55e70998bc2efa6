"""Twice as many steps as the sidecar can take, beside half as many, by the tap's own throttle; and what its sender costs."""

from __future__ import annotations

import numpy as np

from bench.row import Row, ratio
from bench.serving import serving_plan
from bench.steps import REFERENCE
from bench.tapped import Load, connected

_DIRECTIONS = 64
_WHAT = "4 tap points x 64 rows x 4096 bf16"


def measure(*, short: bool = False) -> list[Row]:
    rounds, seconds = (2, 0.7) if short else (6, 3.0)
    ring = _loads("true", rounds, seconds)
    grpc = _loads("false", rounds, seconds)
    return [
        *_overload_rows(ring, "the ring", goals=True),
        *_overload_rows(grpc, "gRPC", goals=False),
        *_sender(ring, grpc),
    ]


def _loads(ring: str, rounds: int, seconds: float) -> dict[str, list[Load]]:
    made: dict[str, list[Load]] = {"full": [], "half": [], "double": []}
    served = serving_plan(REFERENCE.columns, REFERENCE.taps, _DIRECTIONS, f"ring.enabled={ring}")
    with served as sidecar, connected(sidecar.address) as engine:
        engine.saturate(seconds / 4)  # warm
        for _ in range(rounds):
            full = engine.saturate(seconds)
            made["full"].append(full)
            made["half"].append(engine.offer(seconds, full.scored_per_s / 2))
            made["double"].append(engine.offer(seconds, full.scored_per_s * 2))
    return made


def _overload_rows(loads: dict[str, list[Load]], way: str, *, goals: bool) -> list[Row]:
    half, full, double = loads["half"], loads["full"], loads["double"]
    wait = "from being handed over by the tap to the answer; the ladder is off"
    rows = [
        ratio(f"p99 of accepted at 2 x overload / at half load, by {way}", _p99s(double), _p99s(half), wait),
        ratio(f"goodput at 2 x overload / capacity, by {way}", _goodput(double), _goodput(full), _WHAT),
    ]
    spent = np.concatenate([one.engine_cpu_s for one in double])
    quantile = f"engine-thread CPU of the tap per step at 2 x overload, p99.9, us, by {way}"
    note = f"absolute, of this machine; {len(spent)} steps, p50 {1e6 * np.median(spent):.0f} us; rows are copied in it"
    tail = Row(quantile, 1e6 * float(np.quantile(spent, 0.999)), note=note)
    return [rows[0].at_most(2), rows[1].at_least(0.95), tail] if goals else [*rows, tail]


def _sender(ring: dict[str, list[Load]], grpc: dict[str, list[Load]]) -> list[Row]:
    """At half load: what a step costs on the tap's own threads."""
    by_ring, by_grpc = ([one.tap_cpu_s for one in loads["half"]] for loads in (ring, grpc))
    note = f"the tap's own threads, per step of {_WHAT}, at half load"
    value = float(np.median(by_ring))
    return [
        ratio("tap CPU by the ring / by gRPC, same rows", by_ring, by_grpc, note).at_most(0.1),
        Row("tap CPU by the ring per step, us", 1e6 * value, note="absolute, of this machine"),
    ]


def _p99s(loads: list[Load]) -> list[float]:
    return [one.p99_s for one in loads]


def _goodput(loads: list[Load]) -> list[float]:
    return [one.scored_per_s for one in loads]
