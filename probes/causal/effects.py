"""How much an intervention moves the model's log-odds: the effect, and its rank among random ones.

A statistic takes weights of texts, float64 [r, n], and gives its value under each weighting, [r]: all ones give the effect itself,
the resamples of `probes.quality.bootstrap` its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from probes.causal.behaviour import Measure
from probes.quality.bootstrap import Ranking
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Array], Array]
P_LIMIT = 0.05
# The p-value of an effect that beats them all is 1 / (1 + randoms): with fewer, nothing could pass.
FEWEST_RANDOMS = 19


def value(statistic: Statistic, count: int) -> float:
    """On ``count`` texts, each once."""
    return float(statistic(np.ones((1, count)))[0])


def contrast(log_odds: Array, labels: BoolArray, measure: Measure) -> Statistic:
    """How differently the model answers for positive and for negative texts: nats, or AUROC.

    >>> value(contrast(np.array([2.0, 1.0, -1.0]), np.array([True, True, False]), Measure.LOG_ODDS), 3)
    2.5
    """
    if measure is Measure.AUROC:
        return Ranking.of(log_odds, labels).auroc
    return lambda weights: _mean(log_odds, weights * labels) - _mean(log_odds, weights * ~labels)


def lost(before: Array, after: Array, labels: BoolArray, measure: Measure) -> Statistic:
    """By how much the contrast falls."""
    had, has = contrast(before, labels, measure), contrast(after, labels, measure)
    return lambda weights: had(weights) - has(weights)


def lifted(up: Array, down: Array, measure: Measure) -> Statistic:
    """Half of the difference between steering up and down; for AUROC, how far above .5 the one is told from the other."""
    if measure is Measure.LOG_ODDS:
        return lambda weights: _mean(up - down, weights) / 2
    ranking = Ranking.of(np.concatenate([up, down]), np.repeat([True, False], len(up)))
    return lambda weights: ranking.auroc(np.concatenate([weights, weights], axis=1)) - 0.5


def p_value(effect: float, randoms: Sequence[float]) -> float:
    """Share of the random effects, and this one, that are as large or larger (Phipson and Smyth, 2010).

    >>> p_value(3.0, [1.0, 2.0, 3.0])
    0.5
    """
    return (1 + sum(random >= effect for random in randoms)) / (1 + len(randoms))


def passes(interval: tuple[float, float], p: float) -> bool:
    """Larger than random ones, and above zero: every effect here is counted positive where use would push it."""
    return p <= P_LIMIT and interval[0] > 0


def _mean(values: Array, weights: Array) -> Array:
    found: Array = (weights @ values) / weights.sum(axis=1)
    return found
