"""Running per-request scores: each kind costs O(1) a token and equals its definition over all rows at once.

All state is in arrays [slots, S]; one call updates every request of a step. Readings that are not valid for a signal leave
its state untouched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.manifest import AggregationKind
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray

DoubleArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Grouped:
    """The rows of a step, grouped by request: group g owns rows starts[g] up to the next start, and goes to slots[g]."""

    values: FloatArray  # [T, S]
    valid: BoolArray  # [T, S]
    starts: IndexArray  # [G], strictly increasing, starts[0] == 0
    slots: IndexArray  # [G], distinct


class Aggregates:
    """The running score of every signal for every tracked request.

    ``scores`` are in the readings' own unit, before calibration. Memory: about 40 bytes per slot and signal, plus 4 x window
    for each signal of kind max_rolling_mean.
    """

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        kinds = [signal.aggregation for signal in signals]
        self._mean, self._last, self._ema, self._rolling = (
            np.flatnonzero([kind is wanted for kind in kinds]) for wanted in AggregationKind
        )
        windows = np.array([signal.window for signal in signals], dtype=np.int64)
        self._alpha = 2.0 / (windows[self._ema] + 1.0)  # [E]
        self._windows = windows[self._rolling]  # [R]
        self.counts = np.zeros((slots, len(signals)), dtype=np.int64)  # [slots, S]
        self.scores: DoubleArray = np.zeros((slots, len(signals)), dtype=np.float64)  # [slots, S]
        self._sums: DoubleArray = np.zeros((slots, len(signals)), dtype=np.float64)  # of mean and rolling columns
        width = int(self._windows.max(initial=1))
        self._ring = np.zeros((slots, len(self._rolling), width), dtype=np.float32)  # [slots, R, W]

    def reset(self, slot: int) -> None:
        """Forget a request: its slot is free for another."""
        self.counts[slot] = 0
        self.scores[slot] = 0.0
        self._sums[slot] = 0.0
        self._ring[slot] = 0.0

    def move(self, other: Aggregates, columns: Sequence[tuple[int, int]], slots: Sequence[int]) -> None:
        """Take over the state of signals that a reload left as they were.

        columns: (column there, column here) pairs; slots: those in use, the others are empty in both.
        """
        for old, new in columns:
            self.counts[slots, new] = other.counts[slots, old]
            self.scores[slots, new] = other.scores[slots, old]
            self._sums[slots, new] = other._sums[slots, old]
            there, here = np.flatnonzero(other._rolling == old), np.flatnonzero(self._rolling == new)
            if there.size:
                width = min(self._ring.shape[2], other._ring.shape[2])
                self._ring[slots, here[0], :width] = other._ring[slots, there[0], :width]

    def update(self, rows: Grouped) -> None:
        """Take in one step. O(T*S), vectorised; requests with several rows and a rolling window cost one pass each."""
        added = np.add.reduceat(rows.valid, rows.starts, axis=0, dtype=np.int64)  # [G, S]
        if self._mean.size:
            self._update_mean(rows, added)
        if self._last.size:
            self._update_last(rows)
        if self._ema.size:
            self._update_ema(rows, added)
        if self._rolling.size:
            self._update_rolling(rows, added)
        self.counts[rows.slots] += added

    def _update_mean(self, rows: Grouped, added: npt.NDArray[np.int64]) -> None:
        cells = np.ix_(rows.slots, self._mean)
        masked = np.where(rows.valid[:, self._mean], rows.values[:, self._mean], np.float32(0))
        sums = self._sums[cells] + np.add.reduceat(masked, rows.starts, axis=0, dtype=np.float64)
        counts = self.counts[cells] + added[:, self._mean]
        self._sums[cells] = sums
        self.scores[cells] = sums / np.maximum(counts, 1)

    def _update_last(self, rows: Grouped) -> None:
        cells = np.ix_(rows.slots, self._last)
        order = np.arange(len(rows.values), dtype=np.int64)[:, None]
        newest = np.maximum.reduceat(np.where(rows.valid[:, self._last], order, -1), rows.starts, axis=0)  # [G, L]
        values = rows.values[np.maximum(newest, 0), self._last]
        self.scores[cells] = np.where(newest >= 0, values, self.scores[cells])

    def _update_ema(self, rows: Grouped, added: npt.NDArray[np.int64]) -> None:
        """e_n = (1-a)^n e_0 + sum_i a (1-a)^(rows after i) r_i; the very first reading of a request has weight 1, not a."""
        valid = rows.valid[:, self._ema]
        values = np.where(valid, rows.values[:, self._ema], np.float32(0)).astype(np.float64)
        cells = np.ix_(rows.slots, self._ema)
        n = added[:, self._ema]  # [G, E]
        group = np.repeat(np.arange(len(rows.starts)), np.diff(rows.starts, append=len(values)))
        seen = np.cumsum(valid, axis=0)  # [T, E], valid rows up to and including this one, over all groups
        before: npt.NDArray[np.int64] = (seen - valid)[rows.starts]  # [G, E]
        rank: npt.NDArray[np.int64] = seen - before[group]  # 1 for a group's first valid row
        fresh = self.counts[cells] == 0  # [G, E]
        weight = np.where((rank == 1) & fresh[group], 1.0, self._alpha)
        decay = (1.0 - self._alpha) ** (n[group] - rank)
        new = np.add.reduceat(np.where(valid, values * weight * decay, 0.0), rows.starts, axis=0)
        self.scores[cells] = self.scores[cells] * (1.0 - self._alpha) ** n + new

    def _update_rolling(self, rows: Grouped, added: npt.NDArray[np.int64]) -> None:
        longest = added[:, self._rolling].max(axis=1)  # [G]
        single = np.flatnonzero(longest == 1)
        if single.size:
            self._roll_one(rows, single)
        for group in np.flatnonzero(longest > 1).tolist():
            stop = rows.starts[group + 1] if group + 1 < len(rows.starts) else len(rows.values)
            self._roll_group(int(rows.slots[group]), slice(rows.starts[group], stop), rows)

    def _roll_group(self, slot: int, span: slice, rows: Grouped) -> None:
        """One request with several rows: signals of one window, count and choice of rows go together, mostly all of them."""
        valid = rows.valid[span, self._rolling]  # [n, R]
        alike: defaultdict[tuple[int, int, bytes], list[int]] = defaultdict(list)
        for place, column in enumerate(self._rolling.tolist()):
            key = (int(self._windows[place]), int(self.counts[slot, column]), valid[:, place].tobytes())
            alike[key].append(place)
        values = rows.values[span]
        for (window, count, _), places in alike.items():
            chosen = values[np.ix_(valid[:, places[0]], self._rolling[places])]  # [m, P]
            if len(chosen):
                self._roll_many(slot, np.array(places), window, count, chosen)

    def _roll_one(self, rows: Grouped, groups: IndexArray) -> None:
        """One valid reading at most per group and signal: the decode step, for all requests at once."""
        starts = np.append(rows.starts, len(rows.values))
        order = np.arange(len(rows.values), dtype=np.int64)[:, None]
        newest = np.maximum.reduceat(np.where(rows.valid[:, self._rolling], order, -1), rows.starts, axis=0)[groups]
        has = newest >= starts[groups, None]  # [G', R]
        g, place = np.nonzero(has)
        slot, column, window = rows.slots[groups[g]], self._rolling[place], self._windows[place]
        count = self.counts[slot, column]
        value = rows.values[newest[g, place], column]
        at = count % window
        sums = self._sums[slot, column] + value - self._ring[slot, place, at]
        self._ring[slot, place, at] = value
        wrapped = (count + 1) % window == 0  # once a window, add afresh: rounding never accumulates
        if wrapped.any():
            sums[wrapped] = self._ring[slot[wrapped], place[wrapped]].sum(axis=1, dtype=np.float64)
        self._sums[slot, column] = sums
        mean = sums / np.minimum(count + 1, window)
        best = self.scores[slot, column]
        self.scores[slot, column] = np.where(count + 1 <= window, mean, np.maximum(best, mean))

    def _roll_many(self, slot: int, places: IndexArray, window: int, count: int, readings: FloatArray) -> None:
        """Readings [m, P] of one request, for signals that have seen ``count`` readings and have the same window."""
        columns = self._rolling[places]
        kept = np.arange(max(0, count - window), count) % window
        line = np.concatenate([self._ring[slot][np.ix_(places, kept)].T, readings]).astype(np.float64)  # [k + m, P]
        sums = np.concatenate([np.zeros((1, len(places))), np.cumsum(line, axis=0)])
        total = count + len(readings)
        if total < window:
            scores = sums[-1] / total
        else:
            scores = ((sums[window:] - sums[:-window]) / window).max(axis=0)
            if count >= window:
                scores = np.maximum(scores, self.scores[slot, columns])
        newest = line[-window:]
        self._ring[slot, places[:, None], np.arange(total - len(newest), total) % window] = newest.T
        self._sums[slot, columns] = self._ring[slot, places].sum(axis=1, dtype=np.float64)
        self.scores[slot, columns] = scores
