"""How the cost of a step grows with its rows, its directions and its tap points; and how long verdicts take as taps join."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.crowd import Crowded, crowd
from bench.peers import RingPeer
from bench.rounds import Contender, cpus
from bench.row import Row, median_interval
from bench.serving import serving_plan
from bench.steps import Shape, Steps

WIDTH, TAPS, ROWS, DIRECTIONS = 4096, 4, 64, 64
_LINEAR = 0.98
SHARE = 0.1  # of the steps that one core can take, that each tap of a crowd offers
_KNEE = 2.0  # times the p99 of a lone tap


@dataclass(frozen=True, slots=True)
class Curve:
    """CPU of the worker per step, us, with its 95 % intervals, and the line through it: us = base + each * x."""

    unit: str  # of x, at every tap point where it is not the tap points themselves
    x: tuple[int, ...]
    us: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]

    @property
    def line(self) -> tuple[float, float]:
        """(base, each). Least squares of relative errors, so that the smallest sizes count as much as the largest."""
        scale = 1 / np.array(self.us)
        matrix = np.stack([scale, np.array(self.x) * scale], axis=1)
        base, each = np.linalg.lstsq(matrix, np.ones(len(self.x)), rcond=None)[0]
        return float(base), float(each)

    @property
    def r2(self) -> float:
        """Of the line, in the curve's own units."""
        base, each = self.line
        us = np.array(self.us)
        left = us - (base + each * np.array(self.x))
        return float(1 - (left @ left) / np.square(us - us.mean()).sum())


@dataclass(frozen=True, slots=True)
class Scaling:
    """Everything that is plotted."""

    curves: tuple[Curve, ...]
    crowds: tuple[Crowded, ...]  # by number of taps

    @property
    def calm_ms(self) -> float:
        """The lowest p99 of any crowd."""
        return min(one.p99_ms for one in self.crowds)

    @property
    def knee(self) -> Crowded | None:
        """The first crowd from which on every p99 is out of proportion; None if there was none."""
        found = None
        for one in reversed(self.crowds):
            if one.p99_ms <= _KNEE * self.calm_ms:
                break
            found = one
        return found


def measure_all(*, short: bool = False) -> Scaling:
    rounds, count = (3, 10) if short else (8, 30)
    rows = (16, 64, 256) if short else (8, 16, 32, 64, 128, 256, 512)
    columns = () if short else (8, 16, 32, 64, 128, 256)
    taps = () if short else (1, 2, 4, 8, 16)
    crowds = (1, 2, 3) if short else (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    by_rows, crowded = _rows_and_crowds(rows, crowds, rounds, count)
    by_columns = {one: _costs(TAPS, one, rounds, count) for one in columns}
    by_taps = {one: _costs(one, DIRECTIONS, rounds, count) for one in taps}
    curves = (
        _curve("row", by_rows),
        _curve("direction", by_columns),
        _curve("tap point", by_taps),
    )
    return Scaling(tuple(curve for curve in curves if curve.x), crowded)


def rows_of(scaling: Scaling) -> list[Row]:
    """The table's part of it."""
    made = []
    for curve in scaling.curves:
        base, each = curve.line
        note = (
            f"{curve.x[0]} to {curve.x[-1]}; worker CPU per step = {base:.0f} us + {each:.1f} us for each {curve.unit}"
        )
        row = Row(f"cost is linear in {curve.unit}s, R^2", curve.r2, note=note)
        made.append(row.at_least(_LINEAR))
    knee, last = scaling.knee, scaling.crowds[-1]
    at = last if knee is None else knee
    told = f"{at.taps} taps, each with {SHARE:.0%} of a core's steps; p99 {at.p99_ms:.3g} ms, at best {scaling.calm_ms:.3g} ms"
    note = f"no knee up to {told}" if knee is None else told
    name = f"knee: worker's share of a core from which on p99 is over {_KNEE:g} x its best"
    cost = np.array([one.cpu_us for one in scaling.crowds])
    flat = "CPU per step with all taps connected / with one"
    return [*made, Row(name, at.busy, note=note), Row(flat, float(cost[-1] / cost[0]), note=f"{last.taps} taps")]


def _curve(unit: str, costs: dict[int, list[float]]) -> Curve:
    summed = [median_interval([1e6 * value for value in values]) for values in costs.values()]
    return Curve(unit, tuple(costs), tuple(us for us, _ in summed), tuple(interval for _, interval in summed))


def _rows_and_crowds(
    rows: tuple[int, ...], crowds: tuple[int, ...], rounds: int, count: int
) -> tuple[dict[int, list[float]], tuple[Crowded, ...]]:
    with serving_plan(WIDTH, TAPS, DIRECTIONS) as served:
        with RingPeer(served.address, WIDTH) as peer:
            by_rows = {one: _cost(peer, Shape(TAPS, one, WIDTH), served.worker_pid, rounds, count) for one in rows}
        per_s = SHARE / float(np.median(by_rows[ROWS]))
        most = 20 * count
        crowded = tuple(crowd(served, taps, per_s, steps=round(min(most, most / 60 * per_s * taps))) for taps in crowds)
    return by_rows, crowded


def _costs(taps: int, columns: int, rounds: int, count: int) -> list[float]:
    with serving_plan(WIDTH, taps, columns) as served, RingPeer(served.address, WIDTH) as peer:
        return _cost(peer, Shape(taps, ROWS, WIDTH), served.worker_pid, rounds, count)


def _cost(peer: RingPeer, shape: Shape, pid: int, rounds: int, count: int) -> list[float]:
    """CPU seconds of the worker per step, of every round."""
    contender = Contender(peer, Steps(shape), (pid,), max(4, count * ROWS // max(ROWS, shape.rows)))
    contender.round()
    return cpus([contender.round() for _ in range(rounds)])
