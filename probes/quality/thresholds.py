"""Where a probe begins to fire: one threshold, or one for each range of lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from probes.manifest import AggregationKind
from probes.quality.measures import rows_to_certify
from probes.stages import LengthThreshold
from probes.threshold import benign_threshold, clopper_pearson
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
# Scores that can only rise while a text grows: the longer the text, the higher its highest reading.
MAX_LIKE = frozenset(
    {
        AggregationKind.MAX_EMA,
        AggregationKind.MAX_ROLLING_MEAN,
        AggregationKind.COHERENCE,
        AggregationKind.MAX_ROLLING_ATTENTION,
        AggregationKind.MULTIMAX,
    }
)
# Doubling: a highest reading grows with the logarithm of the length. Eight, as many as an artifact carries beside the first.
EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048)


def length_thresholds(
    probabilities: Array, tokens: IndexArray, fpr: float, *, buckets: bool
) -> tuple[LengthThreshold, ...]:
    """Set thresholds at a rate on independent benign rows, by rising length; the first holds from 0 tokens.

    probabilities: float64 [n], n >= 1; tokens: int [n], read of each row. Each threshold keeps its promise by itself (see
    `probes.threshold`). Beyond the longest row nothing is promised.
    """
    starts = bucket_starts(tokens, rows_to_certify(fpr)) if buckets else [0]
    place = _place(starts, tokens)
    return tuple(_threshold(start, probabilities[place == at], fpr) for at, start in enumerate(starts))


def bucket_starts(tokens: IndexArray, enough: int) -> list[int]:
    """Where buckets begin, from 0 up: along `EDGES`, each with at least ``enough`` rows, if there are as many at all.

    From the longest down, a bucket grows until it has enough; what is left over at the short end joins the bucket above it,
    whose threshold, for what can only rise, is on the safe side there.

    >>> bucket_starts(np.repeat([10, 40, 70], [3, 60, 100]), 59)
    [0, 64]
    """
    starts: list[int] = []
    waiting, high = 0, int(tokens.max()) + 1
    for low in (*reversed(EDGES), 0):
        waiting += int(((tokens >= low) & (tokens < high)).sum())
        high = min(high, low)
        if waiting >= enough:
            starts.append(low)
            waiting = 0
    return [0, *reversed(starts[:-1])]


def fires(thresholds: Sequence[LengthThreshold], probabilities: Array, tokens: IndexArray) -> BoolArray:
    """Which rows lie above the threshold for their length, bool [n]."""
    limits = np.array([one.probability for one in thresholds])
    return np.asarray(probabilities > limits[_place([one.min_tokens for one in thresholds], tokens)])


def _place(starts: Sequence[int], tokens: IndexArray) -> IndexArray:
    return np.searchsorted(np.array(starts), tokens, side="right") - 1


def _threshold(start: int, probabilities: Array, fpr: float) -> LengthThreshold:
    found = benign_threshold(probabilities, fpr)
    return LengthThreshold(
        min_tokens=start,
        probability=found.value,
        target_fpr=fpr,
        measured_fpr=found.measured_fpr,
        fpr_interval=clopper_pearson(found.exceeding, found.rows),
        benign_rows=found.rows,
        certified=found.certified,
    )
