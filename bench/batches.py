"""Streams side by side, each with two weeks of history of its own and the reference that was learned of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bench.detecting import reference_of
from bench.streams import DAY, MONTH, TICK_S, Counts, Kind, Shares, stream, tick_means
from sidecar.circuits.reference import Reference, hour_of_week
from sidecar.types import IndexArray

BEGIN = 5 * MONTH  # the streams' first tick
_WEEKS = 2  # of history that all learn from
_STREAMS = 100  # of a month each, side by side


@dataclass(frozen=True, slots=True)
class Batch:
    """Streams of one kind. residual: tick means less the hour's reference."""

    counts: Counts  # [streams, T, k+1]
    histories: Counts  # [streams, T', k+1]
    references: tuple[Reference, ...]

    def means(self, at: int, *, residual: bool) -> Shares:
        return self._means(self.counts[at], BEGIN, self.references[at] if residual else None)

    def sound(self, at: int, *, residual: bool) -> Shares:
        """Of the history, ticks with sessions only."""
        means = self._means(self.histories[at], 0, self.references[at] if residual else None)
        return means[np.isfinite(means)]

    @staticmethod
    def _means(counts: Counts, begin: int, reference: Reference | None) -> Shares:
        means = tick_means(counts)
        return means if reference is None else means - reference.mean[_hours(begin, len(means))]


def batches(kind: Kind, months: float, seed: int) -> Iterator[Batch]:
    """At most 100 streams at a time, of a month each."""
    rng = np.random.default_rng(seed)
    while months > 0:
        streams = max(1, min(_STREAMS, round(months)))
        histories = stream(kind, _WEEKS * 7 * DAY, rng, streams=streams)
        counts = stream(kind, round(MONTH * min(1.0, months)), rng, streams=streams, begin=BEGIN)
        yield Batch(counts, histories, tuple(reference_of(one) for one in histories))
        months -= streams


@lru_cache(maxsize=8)
def _hours(begin: int, ticks: int) -> IndexArray:
    """[ticks], of the week."""
    return np.array([hour_of_week(tick * TICK_S) for tick in range(begin, begin + ticks)])
