"""The kinds of running score that need no more than a number or two: mean, last, exponential mean.

Every kind keeps the state of its own M signals, contiguous by slot, and takes in readings in two ways: ``one`` for requests
with a single row (a decode step, nearly always), ``many`` for requests with several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray

DoubleArray = npt.NDArray[np.float64]
CountArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grouped:
    """The rows of a step, grouped by request: group g owns rows starts[g] up to the next start, and goes to slots[g]."""

    values: FloatArray  # [T, C], C columns of S signals in their order; 0 where not valid
    valid: BoolArray  # [T, S]
    starts: IndexArray  # [G], strictly increasing, starts[0] == 0
    slots: IndexArray  # [G], distinct

    @property
    def lengths(self) -> IndexArray:
        """[G], rows of each group."""
        return np.diff(self.starts, append=len(self.values))


class Kind(Protocol):
    """Running scores of M signals of one kind, which have C columns together; C is M for most kinds."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None: ...

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        """One row for each of G slots: counts [G, M] before it, values [G, C], valid [G, M] or None if all are."""

    def many(self, rows: Grouped, counts: CountArray) -> None:
        """Several rows for each of G slots: rows of C columns, counts [G, M] before them."""

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        """[G, M], a copy; 0 where nothing has been read."""

    def reset(self, slot: int) -> None: ...

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        """Go on where ``other`` stopped with its signal ``old``, as the signal ``new``."""


class Mean:
    """The mean of all readings."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        self._sums: DoubleArray = np.zeros((slots, len(signals)))

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        del counts, valid  # what is not valid is 0
        self._sums[slots] += values

    def many(self, rows: Grouped, counts: CountArray) -> None:
        del counts
        self._sums[rows.slots] += np.add.reduceat(rows.values, rows.starts, axis=0, dtype=np.float64)

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        made: DoubleArray = self._sums.take(slots, axis=0)
        made /= np.maximum(counts, 1)
        return made

    def reset(self, slot: int) -> None:
        self._sums[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        self._sums[slots, new] = other._sums[slots, old]


class Last:
    """The newest reading."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        self._newest = np.zeros((slots, len(signals)), dtype=np.float32)

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        del counts
        self._newest[slots] = values if valid is None else np.where(valid, values, self._newest.take(slots, axis=0))

    def many(self, rows: Grouped, counts: CountArray) -> None:
        del counts
        order = np.arange(len(rows.values), dtype=np.int32)[:, None]
        newest = np.maximum.reduceat(np.where(rows.valid, order, np.int32(-1)), rows.starts, axis=0)  # [G, M]
        values = np.take_along_axis(rows.values, np.maximum(newest, 0), axis=0)
        self._newest[rows.slots] = np.where(newest >= 0, values, self._newest.take(rows.slots, axis=0))

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        del counts
        return self._newest.take(slots, axis=0).astype(np.float64)

    def reset(self, slot: int) -> None:
        self._newest[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        self._newest[slots, new] = other._newest[slots, old]


class Ema:
    """e_n = (1-a)^n e_0 + sum_i a (1-a)^(rows after i) r_i; the very first reading of a request has weight 1, not a."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        windows = np.array([signal.window for signal in signals], dtype=np.float64)
        self._alpha: DoubleArray = 2.0 / (windows + 1.0)  # [M]
        self._scores: DoubleArray = np.zeros((slots, len(signals)))

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        now: DoubleArray = self._scores.take(slots, axis=0)
        fresh = counts == 0
        new: DoubleArray = now * (1.0 - self._alpha)
        new += values * (np.where(fresh, 1.0, self._alpha) if fresh.any() else self._alpha)
        if valid is not None:
            np.copyto(new, now, where=~valid)
        self._scores[slots] = new

    def many(self, rows: Grouped, counts: CountArray) -> None:
        n = np.add.reduceat(rows.valid, rows.starts, axis=0, dtype=np.int32)  # [G, M]
        group = np.repeat(np.arange(len(rows.starts)), rows.lengths)
        seen = np.cumsum(rows.valid, axis=0, dtype=np.int32)  # [T, M], valid rows up to here, over all groups
        rank = seen - (seen - rows.valid)[rows.starts][group]  # 1 for a group's first valid row
        weight = np.where((rank == 1) & (counts == 0)[group], 1.0, self._alpha)
        decay = (1.0 - self._alpha) ** (n[group] - rank)
        new = np.add.reduceat(np.where(rows.valid, rows.values * weight * decay, 0.0), rows.starts, axis=0)
        self._scores[rows.slots] = self._scores.take(rows.slots, axis=0) * (1.0 - self._alpha) ** n + new

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        del counts
        made: DoubleArray = self._scores.take(slots, axis=0)
        return made

    def reset(self, slot: int) -> None:
        self._scores[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        self._scores[slots, new] = other._scores[slots, old]
