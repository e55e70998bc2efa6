"""CUSUMs that are made as slow as ours: what comes of the strongest peer once it need not be faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.batches import Batch
from bench.changes import CAP, Change
from bench.drift_peers import Learn, cusum
from bench.streams import Counts, Shares

# Slacks in standard deviations: the usual ones, and half of what an ablation moves a tick's mean, less the hour, which is
# the best for seeing one (Page) and no use against anything smaller.
SLACKS = (0.25, 0.5, 2.0)
_HIGHEST = 64.0  # threshold, in standard deviations: by far too slow with each slack


@dataclass(frozen=True, slots=True)
class Matched:
    """k: slack, h: threshold, both in standard deviations of sound traffic. residual: of what is left of the hour's reference."""

    k: float
    h: float
    residual: bool

    @property
    def name(self) -> str:
        told = f"CUSUM k={self.k:g}".replace("=0.", "=.") + ", as slow as ours"
        return f"{told}, less the hour" if self.residual else told

    @property
    def learn(self) -> Learn:
        return cusum(self.k, self.h)


def as_slow(runs: Sequence[Change], ours: float, k: float, *, residual: bool) -> Matched:
    """The highest threshold at which the median delay is still ``ours``; if none gives that very delay, the next slower one.

    So it is as quiet as it can be, and never the faster one. By bisection, to a thousandth of a standard deviation.
    """
    low, high = 0.0, _HIGHEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _delay(runs, k, middle, residual=residual) <= ours else (low, middle)
    return Matched(k, low if _delay(runs, k, low, residual=residual) == ours else high, residual)


def _delay(runs: Sequence[Change], k: float, h: float, *, residual: bool) -> float:
    return float(np.median([min(run.of(cusum(k, h), residual=residual), CAP) for run in runs]))


def false_alarms(batch: Batch, peers: Sequence[Matched], cool_down: int) -> Counts:
    """[peers], alarms on all streams together: what `bench.drift_peers.alarms` finds on each. Peers are of one residual."""
    residual, streams = peers[0].residual, range(len(batch.counts))
    values = np.array([batch.means(at, residual=residual) for at in streams])
    sound = [batch.sound(at, residual=residual) for at in streams]
    mean, deviation = (np.array([[getattr(one, what)()] for one in sound]) for what in ("mean", "std"))
    slack, threshold = (np.array([[getattr(one, what)] for one in peers]) for what in ("k", "h"))
    return _alarms((values - mean) / deviation, slack, threshold, cool_down)


def _alarms(z: Shares, slack: Shares, threshold: Shares, cool_down: int) -> Counts:
    """z: [streams, T]; slack, threshold: [peers, 1]."""
    shape = len(slack), len(z)
    up, down, quiet = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    found = np.zeros(len(slack), np.int64)
    there: npt.NDArray[np.bool_] = np.isfinite(z)
    for now, known in zip(np.where(there, z, 0.0).T, there.T, strict=True):
        counts = (quiet == 0) & known
        up = np.where(counts, np.maximum(0.0, up + now - slack), up)
        down = np.where(counts, np.maximum(0.0, down - now - slack), down)
        alarm = counts & (np.maximum(up, down) > threshold)
        np.maximum(quiet - 1, 0, out=quiet)
        if alarm.any():
            found += alarm.sum(axis=1)
            up[alarm] = down[alarm] = 0.0
            quiet[alarm] = cool_down
    return found
