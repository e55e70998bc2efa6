"""Every aggregation in the plainest words, one reading after the other: what both its fast forms are held to."""

from __future__ import annotations

import numpy as np

from probes.manifest import Aggregation, AggregationKind


def by_definition(aggregation: Aggregation, readings: np.ndarray) -> float:
    """readings: [n, columns], n >= 1."""
    kind, window = aggregation.kind, aggregation.window
    line = readings[:, 0].astype(np.float64)
    windows = [readings[i : i + window].astype(np.float64) for i in range(max(1, len(line) - window + 1))]
    found = {
        AggregationKind.MEAN: line.mean(),
        AggregationKind.LAST: line[-1],
        AggregationKind.EMA: exponential(line, window)[-1],
        AggregationKind.MAX_EMA: max(exponential(line, window)),
        AggregationKind.MAX_ROLLING_MEAN: max(one[:, 0].mean() for one in windows),
        AggregationKind.COHERENCE: max(highest(one[:, 0], aggregation.agree) for one in windows),
        AggregationKind.MULTIMAX: sum(head.max() for head in readings.T),
    }
    if aggregation.columns == 2 and kind is not AggregationKind.MULTIMAX:
        found[AggregationKind.ATTENTION] = attended(readings.astype(np.float64))
        found[AggregationKind.MAX_ROLLING_ATTENTION] = max(attended(one) for one in windows)
    return float(found[kind])


def exponential(line: np.ndarray, window: int) -> list[float]:
    scores = [line[0]]
    for value in line[1:]:
        scores.append(scores[-1] + 2.0 / (window + 1) * (value - scores[-1]))
    return scores


def highest(line: np.ndarray, which: int) -> float:
    return sorted(line, reverse=True)[min(which, len(line)) - 1]


def attended(both: np.ndarray) -> float:
    return np.average(both[:, 0], weights=np.exp(both[:, 1]))
