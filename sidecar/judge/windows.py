"""The highest score of any window of consecutive readings, for scores that a sum cannot follow: the window itself is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sidecar.judge.alike import alike
from sidecar.judge.highest import Highest
from sidecar.judge.kinds import CountArray, DoubleArray, Grouped
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray


class _MaxOfWindows(Highest):
    """max over windows of w readings of ``_score``; the score of all readings while there are fewer. O(w log w) a reading.

    A place of the window that no reading has taken yet holds minus infinity, which ``_score`` must pass over.
    """

    _columns = 1

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        super().__init__(signals, slots)
        self._windows = np.array([signal.window for signal in signals], dtype=np.int32)  # [M]
        self._agree = np.array([signal.agree for signal in signals], dtype=np.int32)
        width = int(self._windows.max(initial=1))
        self._ring = np.full((slots, len(signals), self._columns, width), -np.inf, dtype=np.float32)  # [slots, M, c, W]

    def _score(self, windows: DoubleArray, agree: CountArray) -> DoubleArray:
        """[..., c, W] to [...]; agree: [...], at most as many as there are readings."""
        raise NotImplementedError

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        ring = self._ring.take(slots, axis=0)  # [G, M, c, W]
        group, place = np.indices(counts.shape)
        new = values.reshape(*counts.shape, self._columns)
        ring[group, place, :, counts % self._windows] = new
        now = self._score(ring.astype(np.float64), np.minimum(self._agree, counts + 1))
        self._raise(slots, now, counts >= self._windows, valid)
        if valid is not None:
            ring = np.where(valid[:, :, None, None], ring, self._ring.take(slots, axis=0))
        self._ring[slots] = ring

    def many(self, rows: Grouped, counts: CountArray) -> None:
        for one in alike(self._windows.tolist(), rows, counts):
            readings = one.readings.reshape(len(one.readings), len(one.places), self._columns)
            self._roll(one.slot, one.places, one.seen, readings)

    def _roll(self, slot: int, places: IndexArray, count: int, readings: DoubleArray) -> None:
        """Readings [n, P, c] of signals with one window that have seen ``count`` readings."""
        window = int(self._windows[places[0]])
        kept = np.arange(max(0, count - window), count) % window
        line = np.concatenate([np.moveaxis(self._ring[slot, places][:, :, kept], 2, 0), readings])  # [k + n, P, c]
        total = count + len(readings)
        views = sliding_window_view(line, min(window, len(line)), axis=0)  # [v, P, c, w]
        agree = np.broadcast_to(np.minimum(self._agree[places], total), views.shape[:2])
        scores = self._score(views, agree).max(axis=0)
        if count >= window:
            scores = np.maximum(scores, self._best[slot, places])
        newest = line[-window:]
        cells = np.arange(total - len(newest), total) % window
        ring = self._ring[slot, places]
        ring[:, :, cells] = np.moveaxis(newest, 0, 2)
        self._ring[slot, places] = ring
        self._best[slot, places] = scores

    def reset(self, slot: int) -> None:
        super().reset(slot)
        self._ring[slot] = -np.inf

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        super().take(other, old, new, slots)
        width = min(self._ring.shape[3], other._ring.shape[3])
        self._ring[slots, new, :, :width] = other._ring[slots, old, :, :width]


class Coherence(_MaxOfWindows):
    """The window's ``agree``-th highest reading (arXiv 2604.14865): one token that reads high is not enough."""

    def _score(self, windows: DoubleArray, agree: CountArray) -> DoubleArray:
        ordered = np.sort(windows[..., 0, :], axis=-1)[..., ::-1]
        found: DoubleArray = np.take_along_axis(ordered, agree[..., None].astype(np.intp) - 1, axis=-1)[..., 0]
        return found


class MaxRollingAttention(_MaxOfWindows):
    """sum exp(q) v / sum exp(q) over the window (arXiv 2601.11516); columns are value and query."""

    _columns = 2

    def _score(self, windows: DoubleArray, agree: CountArray) -> DoubleArray:
        del agree
        values, queries = windows[..., 0, :], windows[..., 1, :]
        shares = np.exp(queries - queries.max(axis=-1, keepdims=True))
        found: DoubleArray = (shares * np.where(shares > 0, values, 0.0)).sum(axis=-1) / shares.sum(axis=-1)
        return found
