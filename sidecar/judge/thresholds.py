"""When signals fire: a threshold each, or one for every length of request, where longer texts reach higher by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidecar.judge.kinds import CountArray, DoubleArray
from sidecar.reading.plan import Signal

_NEAR = 1e-3  # logits: where the sigmoid is almost 1, its last digit is worth so much
_NEVER = np.iinfo(np.int32).max


class Thresholds:
    """Of S signals, as probabilities and as logits a little below them: scores under these need no sigmoid.

    A threshold of 0 or 1 is minus or plus infinity as a logit: everything is near it, or nothing.
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

    def near(self, counts: CountArray) -> DoubleArray:
        """Logits [G, S], or [S] if lengths do not matter, from which on a score is worth a sigmoid. counts: tokens read [G, S]."""
        return self._near[self._signals, self._bucket(counts)] if self._edges.size else self._near[:, 0]

    def of(self, counts: CountArray) -> DoubleArray:
        """Probabilities [S] for one request. counts: [S]."""
        return self._probabilities[self._signals, self._bucket(counts)]

    def _bucket(self, counts: CountArray) -> CountArray:
        reached: CountArray = (counts[..., None] >= self._edges).sum(axis=-1, dtype=np.int32)
        return reached
