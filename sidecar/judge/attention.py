"""Scores of several columns that need no window: softmax attention over all tokens, and the sum of several heads' maxima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from sidecar.judge.kinds import CountArray, DoubleArray, Grouped
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray


class Attention:
    """sum exp(q_i) v_i / sum exp(q_i) over all readings; a signal's columns are value and query.

    Kept are the highest query so far and both sums relative to it, so nothing overflows (Milakov and Gimelshein, 2018).
    """

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        shape = (slots, len(signals))
        self._highest: DoubleArray = np.full(shape, -np.inf)
        self._weighted: DoubleArray = np.zeros(shape)  # sum exp(q - highest) v
        self._weights: DoubleArray = np.zeros(shape)  # sum exp(q - highest)

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        used = np.ones(counts.shape, dtype=np.bool_) if valid is None else valid
        self.many(Grouped(values, used, np.arange(len(slots)), slots), counts)

    def many(self, rows: Grouped, counts: CountArray) -> None:
        del counts
        queries = np.where(rows.valid, rows.values[:, 1::2], -np.inf).astype(np.float64)  # [T, M]
        before: DoubleArray = self._highest.take(rows.slots, axis=0)
        highest = np.maximum(before, np.maximum.reduceat(queries, rows.starts, axis=0))  # [G, M]
        base = np.where(np.isfinite(highest), highest, 0.0)
        shares = np.exp(queries - np.repeat(base, rows.lengths, axis=0))
        kept = np.exp(before - base)
        for sums, new in ((self._weighted, shares * rows.values[:, 0::2]), (self._weights, shares)):
            sums[rows.slots] = sums.take(rows.slots, axis=0) * kept + np.add.reduceat(new, rows.starts, axis=0)
        self._highest[rows.slots] = highest

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        weights: DoubleArray = self._weights.take(slots, axis=0)
        made: DoubleArray = self._weighted.take(slots, axis=0) / np.where(counts > 0, weights, 1.0)
        return made

    def reset(self, slot: int) -> None:
        self._highest[slot] = -np.inf
        self._weighted[slot] = self._weights[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        for mine, theirs in (
            (self._highest, other._highest),
            (self._weighted, other._weighted),
            (self._weights, other._weights),
        ):
            mine[slots, new] = theirs[slots, old]


class MultiMax:
    """The sum over a signal's heads of the highest reading of each (arXiv 2601.11516); one column a head."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        heads = np.array([signal.columns for signal in signals], dtype=np.intp)
        self._starts = np.cumsum(heads) - heads  # [M]
        self._owners = np.repeat(np.arange(len(signals)), heads)  # [C]
        self._highest: DoubleArray = np.full((slots, len(self._owners)), -np.inf)

    def one(self, slots: IndexArray, counts: CountArray, values: FloatArray, valid: BoolArray | None) -> None:
        del counts
        used = values if valid is None else np.where(valid[:, self._owners], values, -np.inf)
        self._highest[slots] = np.maximum(self._highest.take(slots, axis=0), used)

    def many(self, rows: Grouped, counts: CountArray) -> None:
        del counts
        used = np.where(rows.valid[:, self._owners], rows.values, -np.inf)
        highest = np.maximum.reduceat(used, rows.starts, axis=0)
        self._highest[rows.slots] = np.maximum(self._highest.take(rows.slots, axis=0), highest)

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        sums = np.add.reduceat(self._highest.take(slots, axis=0), self._starts, axis=1)
        return np.where(counts > 0, sums, 0.0)

    def reset(self, slot: int) -> None:
        self._highest[slot] = -np.inf

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        there, here = np.flatnonzero(other._owners == old), np.flatnonzero(self._owners == new)
        self._highest[np.ix_(slots, here)] = other._highest[np.ix_(slots, there)]
