"""The whitened difference of means: the direction between the classes, in units of how far their members scatter."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.base import POOLED, ProbeEstimator, serve
from probes.kinds.descent import Directions
from probes.kinds.logistic import ONE_COLUMN
from probes.kinds.moments import ClassMoments, class_moments
from probes.kinds.rows import Texts
from probes.kinds.threads import one_thread
from probes.manifest import Aggregation, AggregationKind
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]


class MassMean(ProbeEstimator):
    """w = S^-1 (mean of positives - mean of negatives), S the classes' own covariance, shrunk; 0 is half way between the means.

    Marks and Tegmark (arXiv 2310.06824, section 5), where the difference of means is the more causal direction. Unwhitened it
    is ruled by the few massive coordinates of a residual stream. It is also the direction of linear discriminant analysis and,
    at the matching penalty, of ridge regression on the labels. Exact from sums (`probes.kinds.moments`): one pass over any
    number of texts, O(D^2) memory.

    strength: over coordinates in units of their own scatter, S = (strength * correlations + identity) / (strength + 1): near 0
    coordinates count as independent, the more the further their correlations are believed.
    """

    accepts: ClassVar[frozenset[AggregationKind]] = ONE_COLUMN
    aggregations: ClassVar[tuple[Aggregation, ...]] = POOLED
    strengths: ClassVar[tuple[float, ...]] = (0.1, 1.0, 10.0)
    quick: ClassVar[bool] = True

    def __init__(self, aggregation: Aggregation = POOLED[0], strength: float = 1.0) -> None:
        self.aggregation = aggregation
        self.strength = strength

    def fit_moments(self, moments: ClassMoments) -> Self:
        """Fit from sums that were made elsewhere; `classes_` are False and True."""
        self._check()
        self.classes_ = np.array([False, True])
        self.n_features_in_ = len(moments.positive.mean)
        with one_thread():
            self.served_ = serve(self._whiten(moments), self.aggregation)
        return self

    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        return self._whiten(class_moments(texts, labels, weights, self.aggregation))

    def _whiten(self, moments: ClassMoments) -> Directions:
        from scipy.linalg import solve

        positive, negative = moments.positive, moments.negative
        if not positive.count or not negative.count:
            raise LabError("the sums are of one class only")
        covariance = (positive.scatter / positive.count + negative.scatter / negative.count) / 2
        spread = np.sqrt(np.diag(covariance))
        middle = (positive.mean + negative.mean) / 2
        spread[spread <= np.abs(middle) * 1e-7] = 1.0
        shrunk = covariance / spread / spread[:, None] * (self.strength / (1 + self.strength))
        shrunk[np.diag_indices_from(shrunk)] += 1 / (1 + self.strength)
        slope = solve(shrunk, (positive.mean - negative.mean) / spread, assume_a="pos") / spread
        return Directions(slope[:, None], -(middle @ slope)[None])
