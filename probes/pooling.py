"""How a request's rows become one number: the same definitions as the service's running ones, over a whole request at once.

Over the readings r_1 ... r_n of a request, in order (after the skipped positions):

- mean: their average; last: r_n.
- ema: e_1 = r_1, e_i = e_{i-1} + a (r_i - e_{i-1}), a = 2 / (window + 1); the score is e_n.
- max_rolling_mean: the largest mean of ``window`` readings in a row; while there are fewer, the mean of all.

The first three are weighted sums of readings whose weights add up to 1. So pooling states and then reading them is the same
as reading states and then pooling, and a probe can be trained on pooled states.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from probes.manifest import Aggregation, AggregationKind

Array = npt.NDArray[np.float64]
LINEAR = frozenset({AggregationKind.MEAN, AggregationKind.LAST, AggregationKind.EMA})


def weights(aggregation: Aggregation, count: int) -> Array:
    """Return what each of ``count`` >= 1 readings weighs in the score, float64 [count]; for the linear kinds only.

    >>> weights(Aggregation(kind=AggregationKind.EMA, window=3), 3).tolist()
    [0.25, 0.25, 0.5]
    """
    if aggregation.kind is AggregationKind.MEAN:
        return np.full(count, 1.0 / count)
    if aggregation.kind is AggregationKind.LAST:
        last: Array = np.zeros(count)
        last[-1] = 1.0
        return last
    if aggregation.kind is AggregationKind.EMA:
        alpha = 2.0 / (aggregation.window + 1)
        share: Array = alpha * (1 - alpha) ** np.arange(count - 1, -1, -1.0)
        share[0] /= alpha
        return share
    raise ValueError(f"{aggregation.kind.value} is not a weighted sum")


def aggregate(readings: Array, aggregation: Aggregation) -> float:
    """Score one request; readings: [n], n >= 1.

    >>> aggregate(np.array([0.0, 4.0, 2.0]), Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN, window=2))
    3.0
    """
    if aggregation.kind in LINEAR:
        return float(weights(aggregation, len(readings)) @ readings)
    window = min(aggregation.window, len(readings))
    sums = np.cumsum(np.concatenate([[0.0], readings]))
    return float(((sums[window:] - sums[:-window]) / window).max())
