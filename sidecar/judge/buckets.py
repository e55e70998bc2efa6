"""The edges of a histogram: it counts in the finest bins that its classic and its native buckets need, and shows both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sidecar.snapshot import CountArray, Exemplar, Histogram, NativeBuckets

DoubleArray = npt.NDArray[np.float64]

SCHEMA = 3  # eight native buckets for each doubling: a bucket is 9 % wide
_PER_DOUBLING = 1 << SCHEMA
_MANTISSA_BITS = 52
_FINEST_GRID = 12  # bits of the mantissa; more would be a table of megabytes, and edges that no reader can tell apart
EXEMPLAR = np.dtype([("value", "<f8"), ("trace_id", "S32"), ("span_id", "S16"), ("at_s", "<f8")])  # at_s is 0: none


class TallyArrays(NamedTuple):
    """Everything that ``N`` histograms with the same edges have counted, as plain arrays: copied whole, shown elsewhere."""

    counts: CountArray  # [N, edges.width]
    totals: DoubleArray  # [N], sum of the observations
    exemplars: npt.NDArray[np.void]  # [N, len(edges.classic) + 1] of EXEMPLAR

    def copy(self) -> TallyArrays:
        """Take the counts as they are now."""
        return TallyArrays(self.counts.copy(), self.totals.copy(), self.exemplars.copy())


@dataclass(frozen=True)
class Edges:
    """Upper bounds of classic buckets, and native ones from 2**smallest (what is less counts as zero) up to 2**largest.

    Both see the same observations, each counted once, in the bins between the edges of both. A value on an edge belongs to
    the bucket below it. Beyond 2**largest there is one more native bucket, for all that is greater.

    >>> edges = Edges((0.25, 1.0), smallest=-1, largest=0)
    >>> edges.fine[:3].round(3).tolist(), edges.width
    ([0.25, 0.5, 0.545], 11)
    """

    classic: tuple[float, ...]
    smallest: int
    largest: int

    def __post_init__(self) -> None:
        if not self.classic or any(low >= high for low, high in pairwise(self.classic)) or self.classic[0] <= 0:
            raise ValueError("edges must increase, from above 0")
        if self.smallest >= self.largest:
            raise ValueError("the smallest native edge must be below the largest")

    @property
    def width(self) -> int:
        """Return how many bins are counted."""
        return len(self.fine) + 1

    @cached_property
    def _native(self) -> DoubleArray:
        eighths = np.arange(self.smallest * _PER_DOUBLING, self.largest * _PER_DOUBLING + 1)
        return np.ldexp(2.0 ** (eighths % _PER_DOUBLING / _PER_DOUBLING), eighths // _PER_DOUBLING)

    @cached_property
    def fine(self) -> DoubleArray:
        """Upper bounds of the bins that are counted, without the last, which has none."""
        return np.union1d(np.array(self.classic), self._native)

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.fine)

    @cached_property
    def _classic_starts(self) -> npt.NDArray[np.intp]:
        return np.append(0, np.searchsorted(self.fine, self.classic) + 1)

    @cached_property
    def _native_starts(self) -> npt.NDArray[np.intp]:
        return np.append(0, np.searchsorted(self.fine, self._native) + 1)

    def histograms(self, arrays: TallyArrays) -> Iterator[Histogram]:
        """Show what was counted with these edges, in this process or in another: one histogram for each row."""
        classic = np.add.reduceat(arrays.counts, self._classic_starts, axis=1)
        native = np.add.reduceat(arrays.counts, self._native_starts, axis=1)
        first = self.smallest * _PER_DOUBLING + 1
        for total, bins, powers, places in zip(arrays.totals.tolist(), classic, native, arrays.exemplars, strict=True):
            buckets = NativeBuckets(SCHEMA, 2.0**self.smallest, int(powers[0]), first, powers[1:])
            yield Histogram(self.classic, bins, total, _exemplars(places), buckets)


class Grid:
    """Finds the bins of many values at a cost that does not grow with the edges.

    Doubles above 0 are ordered as their bits are. The leading bits (the exponent and a little of the mantissa) name a
    cell, so fine that it holds one edge at most: the bin is the count of edges in front of the cell, and one more if
    the value is beyond the cell's own edge.
    """

    def __init__(self, edges: DoubleArray) -> None:
        bits = edges.view(np.int64)
        for mantissa in range(_FINEST_GRID + 1):
            self._shift = _MANTISSA_BITS - mantissa
            cells = bits >> self._shift
            if len(np.unique(cells)) == len(edges):
                break
        else:
            raise ValueError("edges are too close to each other")
        self._first = int(cells[0])
        cells = cells - self._first
        self._split = np.full(cells[-1] + 1, np.inf)
        self._split[cells] = edges
        self._before = np.searchsorted(cells, np.arange(cells[-1] + 1))

    def find(self, values: DoubleArray) -> npt.NDArray[np.intp]:
        """[n]: how many edges are less than each value. Values are finite; what is below 0 is less than every edge."""
        cells = values.view(np.int64) >> self._shift
        cells -= self._first
        bins: npt.NDArray[np.intp] = self._before.take(cells, mode="clip")
        bins += values > self._split.take(cells, mode="clip")
        return bins


def _exemplars(places: npt.NDArray[np.void]) -> tuple[Exemplar | None, ...]:
    if not places["at_s"].any():
        return ()
    return tuple(
        Exemplar(value, trace_id.decode(), span_id.decode(), at_s) if at_s else None
        for value, trace_id, span_id, at_s in places.tolist()
    )
