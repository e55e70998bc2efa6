"""L2 logistic regression on pooled states: the plain probe."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from probes.kinds.base import POOLED, ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES, Directions, Passes, Scale, descend
from probes.kinds.losses import single
from probes.kinds.rows import Pooled, Texts, pooled, width_of
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
ONE_COLUMN = LINEAR | {AggregationKind.MAX_EMA, AggregationKind.MAX_ROLLING_MEAN, AggregationKind.COHERENCE}


class Logistic(ProbeEstimator):
    """Trained on each text's pooled row: pooled as it will be scored if that is a weighted sum of rows, else their mean.

    strength: scikit-learn's C, over standardised coordinates. memory_bytes: pooled rows beyond it are read again from X at
    each step instead of being held; the optimum is the same one (the loss is convex).

    >>> texts = [np.full((2, 3), sign, np.float32) * [1, 1, 0] for sign in (-1, -2, 1, 2)]
    >>> Logistic(strength=1.0).fit(texts, [0, 0, 1, 1]).predict([texts[0], texts[3]]).tolist()
    [0, 1]
    """

    accepts: ClassVar[frozenset[AggregationKind]] = ONE_COLUMN
    aggregations: ClassVar[tuple[Aggregation, ...]] = POOLED
    strengths: ClassVar[tuple[float, ...]] = (0.001, 0.01, 0.1)
    quick: ClassVar[bool] = True

    def __init__(
        self,
        aggregation: Aggregation = POOLED[0],
        strength: float = 0.01,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.aggregation = aggregation
        self.strength = strength
        self.memory_bytes = memory_bytes

    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        width = width_of(texts)
        if len(texts) * width * 8 > self.memory_bytes:
            passes = Passes(Pooled(texts, self.aggregation), memory_bytes=0)
            nothing = Directions(np.zeros((width, 1)), np.zeros(1))
            return descend(passes, labels, weights, single, nothing, strength=self.strength)
        return fit_pooled(pooled(texts, self.aggregation, width), labels, weights, self.strength)


def fit_pooled(features: Array, labels: BoolArray, weights: Array, strength: float) -> Directions:
    """Fit on standardised features [n, D], and fold the standardisation in."""
    from sklearn.linear_model import LogisticRegression

    spread = features.std(axis=0)
    spread[spread <= np.abs(features.mean(axis=0)) * 1e-7] = 1.0
    scale = Scale(features.mean(axis=0), spread)
    model = LogisticRegression(C=strength, max_iter=2000)
    model.fit((features - scale.mean) / scale.spread, labels, sample_weight=weights)
    return scale.fold(model.coef_.T, model.intercept_)
