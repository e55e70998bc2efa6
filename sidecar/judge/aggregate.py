"""Running per-request scores: each kind costs O(1) a token and equals its definition over all rows at once.

One call updates every request of a step. Readings that are not valid for a signal leave its state untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from probes.manifest import AggregationKind
from sidecar.judge.attention import Attention, MultiMax
from sidecar.judge.kinds import CountArray, DoubleArray, Ema, Grouped, Kind, Last, Mean
from sidecar.judge.maxima import MaxEma
from sidecar.judge.rolling import MaxRollingMean
from sidecar.judge.windows import Coherence, MaxRollingAttention
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, FloatArray, IndexArray

KINDS: Mapping[AggregationKind, type[Kind]] = MappingProxyType(
    {
        AggregationKind.MEAN: Mean,
        AggregationKind.LAST: Last,
        AggregationKind.EMA: Ema,
        AggregationKind.MAX_EMA: MaxEma,
        AggregationKind.MAX_ROLLING_MEAN: MaxRollingMean,
        AggregationKind.COHERENCE: Coherence,
        AggregationKind.ATTENTION: Attention,
        AggregationKind.MAX_ROLLING_ATTENTION: MaxRollingAttention,
        AggregationKind.MULTIMAX: MultiMax,
    }
)


class _Part(NamedTuple):
    """The signals of one kind: where they stand, where their columns do."""

    where: slice  # of the signals, inside
    cells: slice  # of the columns, inside
    kind: Kind


class Aggregates:
    """The running score of every signal for every tracked request.

    Inside, signals stand by kind, so that each kind works on contiguous columns; outside, in their own order. Scores are in
    the readings' own unit, before calibration. Memory: 8 to 24 bytes per slot and column, plus 4 x the longest window for
    each column of a signal with a rolling window.
    """

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        columns = {
            kind: [i for i, signal in enumerate(signals) if signal.aggregation is kind]
            for kind in KINDS
            if any(signal.aggregation is kind for signal in signals)
        }
        self._order = np.array([i for members in columns.values() for i in members], dtype=np.intp)  # [S]
        self._place = np.argsort(self._order)  # [S], where each signal stands inside
        self._sorted = bool((self._place == np.arange(len(signals))).all())
        widths = np.array([signal.columns for signal in signals], dtype=np.intp)
        starts = np.cumsum(widths) - widths
        self._columns = np.array([starts[i] + k for i in self._order for k in range(widths[i])], dtype=np.intp)  # [C]
        self._kinds: list[_Part] = []
        first = cell = 0
        for kind, members in columns.items():
            cells = int(widths[members].sum())
            made = KINDS[kind]([signals[i] for i in members], slots)
            self._kinds.append(_Part(slice(first, first + len(members)), slice(cell, cell + cells), made))
            first, cell = first + len(members), cell + cells
        self._counts: CountArray = np.zeros((slots, len(signals)), dtype=np.int32)  # [slots, S], by kind

    def state_of(self, slots: IndexArray) -> tuple[DoubleArray, CountArray]:
        """Scores [G, S], 0 where no reading has been taken in, and how many were [G, S]."""
        counts = self._counts.take(slots, axis=0)
        inside = [part.kind.scores(slots, counts[:, part.where]) for part in self._kinds]
        scores = np.concatenate(inside, axis=1) if inside else np.zeros(counts.shape)
        if self._sorted:
            return scores, counts
        return scores.take(self._place, axis=1), counts.take(self._place, axis=1)

    def reset(self, slot: int) -> None:
        """Forget a request: its slot is free for another."""
        self._counts[slot] = 0
        for part in self._kinds:
            part.kind.reset(slot)

    def move(self, other: Aggregates, columns: Sequence[tuple[int, int]], slots: Sequence[int]) -> None:
        """Take over the state of signals that a reload left as they were.

        columns: (column there, column here) pairs of signals that are the same; slots: those in use, the others are empty.
        """
        used = np.array(slots, dtype=np.intp)
        for old, new in columns:
            (there, before), (here, now) = other._kind_of(old), self._kind_of(new)
            now.take(before, there, here, used)
            self._counts[used, self._place[new]] = other._counts[used, other._place[old]]

    def _kind_of(self, column: int) -> tuple[int, Kind]:
        """A signal's place in its kind, and the kind."""
        place = int(self._place[column])
        return next((place - where.start, kind) for where, _, kind in self._kinds if where.start <= place < where.stop)

    def update(self, rows: Grouped) -> None:
        """Take in one step. O(T*S), vectorised; a request with several rows and a rolling window costs a pass of its own."""
        values, valid = rows.values.take(self._columns, axis=1), rows.valid.take(self._order, axis=1)
        lengths = rows.lengths
        single = lengths == 1
        if single.all():
            self._take_one(rows.slots, values, valid)
            return
        alone = rows.starts[single]
        if alone.size:
            self._take_one(rows.slots[single], values[alone], valid[alone])
        others, lengths = np.repeat(~single, lengths), lengths[~single]
        starts = np.cumsum(lengths) - lengths
        self._take_many(Grouped(values[others], valid[others], starts, rows.slots[~single]))

    def _take_one(self, slots: IndexArray, values: FloatArray, valid: BoolArray) -> None:
        """One row for each slot; columns by kind."""
        counts: CountArray = self._counts.take(slots, axis=0)
        some = None if valid.all() else valid
        for where, cells, kind in self._kinds:
            kind.one(slots, counts[:, where], values[:, cells], None if some is None else some[:, where])
        self._counts[slots] = counts + valid

    def _take_many(self, rows: Grouped) -> None:
        """Several rows for each slot; columns by kind."""
        counts: CountArray = self._counts.take(rows.slots, axis=0)
        for where, cells, kind in self._kinds:
            kind.many(Grouped(rows.values[:, cells], rows.valid[:, where], rows.starts, rows.slots), counts[:, where])
        self._counts[rows.slots] = counts + np.add.reduceat(rows.valid, rows.starts, axis=0, dtype=np.int32)
