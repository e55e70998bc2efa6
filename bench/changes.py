"""Streams to which something happens, and how long it takes a detector to say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench.batches import BEGIN, Batch, batches
from bench.detecting import detect
from bench.drift_peers import Learn, alarms
from bench.streams import BOTH, DAY, MEAN, MONTH, Counts, ablated, stream

CAP = 240  # ticks after which an ablation counts as not seen
FALL = 0.10  # in shares: what is half of an incident


@dataclass(frozen=True, slots=True)
class Change:
    """A day or two of diurnal + AR(1), and from tick ``at`` on something else. Of one stream."""

    batch: Batch
    at: int

    def ours(self) -> float:
        """Ticks until it alarms, the first of the change counting as one. Infinite if it never does, or did before."""
        first = int(detect(self.batch.counts, self.batch.references, BEGIN).first[0])
        return float(first - self.at) if first > self.at else np.inf

    def of(self, learn: Learn, *, residual: bool) -> float:
        """The same of another detector, to which an alarm before the change does not count."""
        make = learn(self.batch.sound(0, residual=residual))
        found = alarms(make, self.batch.means(0, residual=residual), 0)
        return float(next((one - self.at + 1 for one in found if one >= self.at), np.inf))


def ablations(count: int) -> Iterator[Change]:
    """At any time of the day, nothing is engaged any more."""
    rng = np.random.default_rng(99)
    for _ in range(count):
        batch, at = _before(rng)
        yield _then(batch, at, ablated(CAP, rng))


def falls(count: int) -> Iterator[Change]:
    """Ten points less, for a day, while all else goes on."""
    rng = np.random.default_rng(98)
    for _ in range(count):
        batch, at = _before(rng)
        yield _then(batch, at, stream(BOTH, DAY, rng, begin=BEGIN + at, mean=MEAN - FALL))


def _before(rng: np.random.Generator) -> tuple[Batch, int]:
    batch = next(batches(BOTH, 2 * DAY / MONTH, int(rng.integers(1 << 30))))
    return batch, int(rng.integers(DAY, 2 * DAY))


def _then(batch: Batch, at: int, after: Counts) -> Change:
    return Change(replace(batch, counts=np.concatenate((batch.counts[:1, :at], after), axis=1)), at)
