"""Histograms that cost nanoseconds an observation: bins are counted in numpy, rendered by whoever scrapes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sidecar.snapshot import Exemplar, Histogram

SCORE_EDGES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SECONDS_EDGES = tuple(m * 10.0**e for e in range(-6, 0) for m in (1.0, 2.5, 5.0))
SHARE_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 5.0, 10.0)


class TallyBank:
    """``size`` histograms with the same edges, counted together. A value on an edge belongs to the bucket below it.

    >>> bank = TallyBank((1.0, 2.0), 2); bank.add(np.array([0, 1]), np.array([1.0, 5.0])); bank.snapshot(1).counts.tolist()
    [0, 0, 1]
    """

    def __init__(self, edges: Sequence[float], size: int) -> None:
        if any(low >= high for low, high in pairwise(edges)):
            raise ValueError("edges must increase")
        self._edges = tuple(edges)
        self._array = np.array(edges, dtype=np.float64)
        self._counts = np.zeros((size, len(edges) + 1), dtype=np.int64)
        self._totals = np.zeros(size, dtype=np.float64)
        self._exemplars: dict[tuple[int, int], Exemplar] = {}  # at most one per bucket

    def add(self, which: npt.NDArray[np.intp], values: npt.NDArray[np.floating]) -> None:
        """Which [n]: the histogram of each value; values [n], finite."""
        size, width = self._counts.shape
        bins = np.searchsorted(self._array, values, side="left")
        self._counts += np.bincount(which * width + bins, minlength=size * width).reshape(size, width)
        self._totals += np.bincount(which, weights=values, minlength=size)

    def show(self, which: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of its bucket. The observation itself is added apart."""
        self._exemplars[which, int(np.searchsorted(self._array, exemplar.value, side="left"))] = exemplar

    def take(self, which: int, other: TallyBank, there: int) -> None:
        """Go on counting where another bank stopped."""
        self._counts[which] = other._counts[there]
        self._totals[which] = other._totals[there]
        for (row, place), exemplar in other._exemplars.items():
            if row == there:
                self._exemplars[which, place] = exemplar

    def snapshot(self, which: int) -> Histogram:
        places = range(self._counts.shape[1])
        return Histogram(
            self._edges,
            self._counts[which].copy(),
            float(self._totals[which]),
            tuple(self._exemplars.get((which, place)) for place in places),
        )


class Tally:
    """One histogram of scalars, such as a stage's duration."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(edges) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._total += value

    def snapshot(self) -> Histogram:
        return Histogram(self._edges, np.array(self._counts, dtype=np.int64), self._total)
