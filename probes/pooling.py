"""How a request's rows become one number: the same definitions as the service's running ones, over a whole request at once.

Over the readings r_1 ... r_n of a request, in order (after the skipped positions):

- mean: their average; last: r_n.
- ema: e_1 = r_1, e_i = e_{i-1} + a (r_i - e_{i-1}), a = 2 / (window + 1); the score is e_n. max_ema: the largest e_i.
- max_rolling_mean: the largest mean of ``window`` readings in a row; while there are fewer, the mean of all.
- coherence: the largest, over windows, of the window's ``agree``-th highest reading: so many tokens agree on it; while there
  are fewer readings than a window, the same of all of them, and the lowest while there are fewer than ``agree``.
- attention, with a value v_i and a query q_i for each row: sum exp(q_i) v_i / sum exp(q_i).
- max_rolling_attention: the largest attention over ``window`` rows in a row; while there are fewer, over all.
- multimax, with one reading a head: the sum over heads of the largest reading.

Mean, last and ema are weighted sums of readings whose weights add up to 1. So pooling states and then reading them is the same
as reading states and then pooling, and a probe can be trained on pooled states. Sources: arXiv 2601.11516 (rolling means,
attention, multimax), 2601.04603 (exponential means), 2604.14865 (coherence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

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
    """Score one request; readings: [n, aggregation.columns], or [n] if there is one column, n >= 1.

    >>> aggregate(np.array([0.0, 4.0, 2.0]), Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN, window=2))
    3.0
    """
    columns = readings.reshape(len(readings), aggregation.columns).astype(np.float64, copy=False)
    if aggregation.kind in LINEAR:
        return float(weights(aggregation, len(columns)) @ columns[:, 0])
    return _OTHERS[aggregation.kind](columns, aggregation)


def _max_ema(readings: Array, aggregation: Aggregation) -> float:
    alpha, now = 2.0 / (aggregation.window + 1), float(readings[0, 0])
    best = now
    for reading in readings[1:, 0].tolist():
        now += alpha * (reading - now)
        best = max(best, now)
    return best


def _max_rolling_mean(readings: Array, aggregation: Aggregation) -> float:
    window = min(aggregation.window, len(readings))
    sums = np.cumsum(np.concatenate([[0.0], readings[:, 0]]))
    return float(((sums[window:] - sums[:-window]) / window).max())


def _coherence(readings: Array, aggregation: Aggregation) -> float:
    window = min(aggregation.window, len(readings))
    agree = min(aggregation.agree, window)
    ordered = np.sort(sliding_window_view(readings[:, 0], window), axis=1)  # [windows, window]
    return float(ordered[:, window - agree].max())


def _attention(readings: Array, _: Aggregation) -> float:
    return _attend(readings)


def _max_rolling_attention(readings: Array, aggregation: Aggregation) -> float:
    window = min(aggregation.window, len(readings))
    return max(_attend(readings[start : start + window]) for start in range(len(readings) - window + 1))


def _attend(readings: Array) -> float:
    values, queries = readings.T
    shares = np.exp(queries - queries.max())
    return float(shares @ values / shares.sum())


def _multimax(readings: Array, _: Aggregation) -> float:
    return float(readings.max(axis=0).sum())


_OTHERS: Mapping[AggregationKind, Callable[[Array, Aggregation], float]] = MappingProxyType(
    {
        AggregationKind.MAX_EMA: _max_ema,
        AggregationKind.MAX_ROLLING_MEAN: _max_rolling_mean,
        AggregationKind.COHERENCE: _coherence,
        AggregationKind.ATTENTION: _attention,
        AggregationKind.MAX_ROLLING_ATTENTION: _max_rolling_attention,
        AggregationKind.MULTIMAX: _multimax,
    }
)
