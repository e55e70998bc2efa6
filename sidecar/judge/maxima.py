"""The highest exponential mean on the way: how high the score has ever been, and not where it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from sidecar.judge.alike import alike
from sidecar.judge.highest import Highest
from sidecar.judge.kinds import CountArray, DoubleArray, Ema, Grouped
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray

_CHUNK = 64  # rows that one small matrix multiplies at a time


class MaxEma(Highest):
    """max over i of e_i, where e is the exponential mean of `kinds.Ema`."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        super().__init__(signals, slots)
        self._windows = [signal.window for signal in signals]
        self._mean = Ema(signals, slots)

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        self._mean.one(slots, counts, values, valid)
        self._raise(slots, self._mean.scores(slots, counts), counts > 0, valid)

    def many(self, rows: Grouped, counts: CountArray) -> None:
        before = self._mean.scores(rows.slots, counts)
        for group, slot, places, count, readings in alike(self._windows, rows, counts):
            highest = _highest(readings, before[group, places], self._windows[places[0]], count)
            seen = self._best[slot, places]
            self._best[slot, places] = np.maximum(seen, highest) if count else highest
        self._mean.many(rows, counts)

    def reset(self, slot: int) -> None:
        super().reset(slot)
        self._mean.reset(slot)

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        super().take(other, old, new, slots)
        self._mean.take(other._mean, old, new, slots)


def _highest(readings: DoubleArray, mean: DoubleArray, window: int, count: int) -> DoubleArray:
    """[P], the highest exponential mean while the readings [n, P] come in, after ``count`` others whose mean is [P]."""
    alpha = 2.0 / (window + 1.0)
    highest = np.full(readings.shape[1], -np.inf)
    if not count:
        mean, highest, readings = readings[0], readings[0], readings[1:]
    for start in range(0, len(readings), _CHUNK):
        part = readings[start : start + _CHUNK]
        age = np.subtract.outer(np.arange(len(part)), np.arange(len(part)))  # [n, n]
        weight = np.where(age >= 0, alpha * (1.0 - alpha) ** np.maximum(age, 0), 0.0)
        means = (1.0 - alpha) ** np.arange(1, len(part) + 1)[:, None] * mean + weight @ part  # [n, P]
        mean, highest = means[-1], np.maximum(highest, means.max(axis=0))
    return highest
