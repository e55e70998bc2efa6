"""When signals fire: a threshold each, or one for every length of request, where longer texts reach higher by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.isotonic import last_at_most
from sidecar.judge.kinds import CountArray, DoubleArray
from sidecar.reading.plan import Signal

_NEAR = 1e-3  # logits: where the sigmoid is almost 1, its last digit is worth so much
_NEVER = np.iinfo(np.int32).max


class Thresholds:
    """Of S signals, as probabilities and, in the numbers of `Calibrations.lines`, a little below them: what is under needs no more.

    For a sigmoid that is the logit: of a threshold of 0 or 1 it is minus or plus infinity, everything is near it, or nothing. For
    a table it is the last knot whose probability does not lie above the threshold.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        lengths = max((len(signal.buckets) for signal in signals), default=0)
        self._signals = np.arange(len(signals))
        self._edges = np.full(
            (len(signals), lengths), _NEVER, dtype=np.int32
        )  # [S, B], tokens from which the next holds
        self._probabilities: DoubleArray = np.empty((len(signals), lengths + 1))  # [S, B + 1]
        for i, signal in enumerate(signals):
            self._probabilities[i] = signal.threshold
            for k, (tokens, threshold) in enumerate(signal.buckets):
                self._edges[i, k] = tokens
                self._probabilities[i, k + 1 :] = threshold
        with np.errstate(divide="ignore"):
            self._near = np.log(self._probabilities) - np.log1p(-self._probabilities) - _NEAR
        for i, signal in enumerate(signals):
            if signal.knots:
                self._near[i] = [
                    _near_along(np.array(signal.knots), share) for share in self._probabilities[i].tolist()
                ]

    def near(self, counts: CountArray) -> DoubleArray:
        """[G, S], or [S] if lengths do not matter: from which line on a score is worth its probability. counts: tokens [G, S]."""
        return self._near[self._signals, self._bucket(counts)] if self._edges.size else self._near[:, 0]

    def of(self, counts: CountArray) -> DoubleArray:
        """Probabilities [S] for one request. counts: [S]."""
        return self._probabilities[self._signals, self._bucket(counts)]

    def _bucket(self, counts: CountArray) -> CountArray:
        reached: CountArray = (counts[..., None] >= self._edges).sum(axis=-1, dtype=np.int32)
        return reached


def _near_along(knots: DoubleArray, share: float) -> float:
    """The score below which nothing lies above ``share``."""
    last = last_at_most(knots, share)
    if last == len(knots) - 1:
        return np.inf
    return -np.inf if last < 0 else float(knots[last, 0])
