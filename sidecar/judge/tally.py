"""Histograms that cost nanoseconds an observation: bins are counted in numpy, shown by whoever scrapes."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from sidecar.judge.buckets import EXEMPLAR, Edges, TallyArrays
from sidecar.snapshot import CountArray, Exemplar, Histogram

SCORE_EDGES = Edges((0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99), smallest=-10, largest=0)
SECONDS_EDGES = Edges(tuple(m * 10.0**e for e in range(-6, 0) for m in (1.0, 2.5, 5.0)), smallest=-20, largest=6)
SHARE_EDGES = Edges(
    (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0, 10.0), smallest=-10, largest=6
)


class TallyBank:
    """``size`` histograms with the same edges, counted together. A value on an edge belongs to the bucket below it.

    >>> bank = TallyBank(SCORE_EDGES, 2); bank.add(np.array([0, 1, 1]), np.array([0.3, 0.995, 0.2]), weight=2)
    >>> bank.snapshot(1).counts.tolist(), bank.snapshot(1).total
    ([0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], 2.39)
    """

    def __init__(self, edges: Edges, size: int) -> None:
        self._edges = edges
        self._width = edges.width
        self._grid = edges.grid
        self._first = np.arange(size, dtype=np.intp) * edges.width  # [size], of each histogram's bins
        self._counts = np.zeros((size, edges.width), dtype=np.int64)
        self._totals = np.zeros(size, dtype=np.float64)
        self._exemplars = np.zeros((size, len(edges.classic) + 1), dtype=EXEMPLAR)

    def add(self, which: npt.NDArray[np.intp], values: npt.NDArray[np.floating], weight: int | CountArray = 1) -> None:
        """Which [n]: the histogram of each value; values [n], finite; each stands for ``weight`` observations like it."""
        doubles = np.ascontiguousarray(values, dtype=np.float64)
        np.add.at(self._counts.reshape(-1), which * self._width + self._grid.find(doubles), weight)
        np.add.at(self._totals, which, doubles * weight)

    def add_rows(self, values: npt.NDArray[np.floating], weight: int = 1) -> None:
        """Values [n, size], finite: one for every histogram in each row. The same as `add`, for half the time."""
        doubles = np.ascontiguousarray(values, dtype=np.float64)
        cells = self._grid.find(doubles.reshape(-1)).reshape(doubles.shape)
        cells += self._first
        np.add.at(self._counts.reshape(-1), cells.reshape(-1), weight)
        self._totals += doubles.sum(axis=0) * weight

    def show(self, which: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of its classic bucket. The observation itself is added apart."""
        place = bisect_left(self._edges.classic, exemplar.value)
        self._exemplars[which, place] = (exemplar.value, exemplar.trace_id, exemplar.span_id, exemplar.at_s)

    def take(self, which: int, other: TallyBank, there: int) -> None:
        """Go on counting where another bank with the same edges stopped."""
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine[which] = theirs[there]

    def arrays(self) -> TallyArrays:
        """Return the live arrays, contiguous: copy them before the next ``add``; ``Edges.histograms`` shows the copies."""
        return TallyArrays(self._counts, self._totals, self._exemplars)

    def snapshot(self, which: int) -> Histogram:
        row = slice(which, which + 1)
        return next(self._edges.histograms(TallyArrays(self._counts[row], self._totals[row], self._exemplars[row])))


class Tally:
    """One histogram of scalars, such as a stage's duration: a list is quicker than an array for one value at a time.

    >>> tally = Tally(SECONDS_EDGES); tally.add(0.003, weight=2); tally.snapshot().total
    0.006
    """

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._bounds: list[float] = edges.fine.tolist()
        self._counts = [0] * edges.width
        self._total = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += weight
        self._total += value * weight

    def arrays(self) -> TallyArrays:
        """Return what a bank of one histogram would; they are copies already."""
        none = np.zeros((1, len(self._edges.classic) + 1), dtype=EXEMPLAR)
        return TallyArrays(np.array([self._counts], dtype=np.int64), np.array([self._total]), none)

    def snapshot(self) -> Histogram:
        return next(self._edges.histograms(self.arrays()))
