"""The highest mean of any window of consecutive readings, without keeping more than one window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from sidecar.judge.alike import alike
from sidecar.judge.highest import Highest
from sidecar.judge.kinds import CountArray, DoubleArray, Grouped
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray


class MaxRollingMean(Highest):
    """max over i of mean(r_i .. r_(i+w-1)); the mean of all readings while there are fewer than w.

    The newest w readings lie in a ring, their sum beside it: a reading costs one addition and one subtraction. Once a
    window the sum is taken afresh, so rounding never accumulates.
    """

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        super().__init__(signals, slots)
        self._windows = np.array([signal.window for signal in signals], dtype=np.int32)  # [M]
        self._divisors = self._windows.astype(np.float64)
        width = int(self._windows.max(initial=1))
        self._sums: DoubleArray = np.zeros((slots, len(signals)))  # of what lies in the ring
        self._ring = np.zeros((slots, len(signals), width), dtype=np.float32)  # [slots, M, W]
        self._flat = self._ring.reshape(-1)  # the same memory
        self._places = np.arange(len(signals), dtype=np.intp) * width  # [M], in a slot's part of it

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        at = counts % self._windows  # [G, M]
        cells = (slots * (len(self._places) * self._ring.shape[2]))[:, None] + self._places
        cells += at
        sums = self._slide(slots, cells, values, valid)
        at += 1
        wrapped = at == self._windows
        if wrapped.any():
            self._add_afresh(slots, sums, wrapped)
        self._sums[slots] = sums
        best: DoubleArray = self._best.take(slots, axis=0)
        new = self._better(best, sums, counts)
        if valid is not None:
            np.copyto(new, best, where=~valid)
        self._best[slots] = new

    def _better(self, best: DoubleArray, sums: DoubleArray, counts: CountArray) -> DoubleArray:
        """[G, M]: the best window with the newest reading in; the mean so far while there is no whole window."""
        if (counts >= self._windows).all():
            return np.maximum(best, sums / self._divisors)
        mean = sums / np.minimum(counts + 1, self._windows)
        return np.where(counts < self._windows, mean, np.maximum(best, mean))

    def _slide(
        self, slots: IndexArray, cells: npt.NDArray[np.intp], values: FloatArray, valid: BoolArray | None
    ) -> DoubleArray:
        """Put the readings into the ring, each in the place of its oldest one; returns the new sums [G, M]."""
        oldest = self._flat.take(cells)
        if valid is not None:
            values = np.where(valid, values, oldest)  # nothing goes, nothing comes
        self._flat[cells] = values
        sums: DoubleArray = self._sums.take(slots, axis=0)
        new = sums + values
        new -= oldest
        if valid is not None:
            np.copyto(new, sums, where=~valid)
        return new

    def _add_afresh(self, slots: IndexArray, sums: DoubleArray, wrapped: BoolArray) -> None:
        group, place = np.nonzero(wrapped)
        sums[group, place] = self._ring[slots[group], place].sum(axis=1, dtype=np.float64)

    def many(self, rows: Grouped, counts: CountArray) -> None:
        for one in alike(self._windows.tolist(), rows, counts):
            self._roll(one.slot, one.places, one.seen, one.readings)

    def _roll(self, slot: int, places: IndexArray, count: int, readings: DoubleArray) -> None:
        """Readings [n, P] of one request, for signals that have seen ``count`` readings and have the same window."""
        window = int(self._windows[places[0]])
        kept = np.arange(max(0, count - window), count) % window
        line = np.concatenate([self._ring[slot][np.ix_(places, kept)].T, readings])  # [k + n, P]
        sums = np.concatenate([np.zeros((1, len(places))), np.cumsum(line, axis=0)])
        total = count + len(readings)
        if total < window:
            scores = sums[-1] / total
        else:
            scores = ((sums[window:] - sums[:-window]) / window).max(axis=0)
            if count >= window:
                scores = np.maximum(scores, self._best[slot, places])
        newest = line[-window:]
        self._ring[slot, places[:, None], np.arange(total - len(newest), total) % window] = newest.T
        self._sums[slot, places] = self._ring[slot, places].sum(axis=1, dtype=np.float64)
        self._best[slot, places] = scores

    def reset(self, slot: int) -> None:
        super().reset(slot)
        self._sums[slot] = 0.0
        self._ring[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        super().take(other, old, new, slots)
        self._sums[slots, new] = other._sums[slots, old]
        width = min(self._ring.shape[2], other._ring.shape[2])
        self._ring[slots, new, :width] = other._ring[slots, old, :width]
