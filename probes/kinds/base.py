"""What every kind of probe has in common: scikit-learn's conventions over texts, each of which is many rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from probes.data.labels import as_bool
from probes.errors import LabError
from probes.kinds.descent import Directions
from probes.kinds.rows import Texts, text_rows, width_of
from probes.kinds.threads import one_thread
from probes.kinds.weighing import text_weights
from probes.manifest import Aggregation, AggregationKind
from probes.serving import Served
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
POOLED = tuple(
    Aggregation(kind=kind)
    for kind in (AggregationKind.MEAN, AggregationKind.LAST, AggregationKind.EMA, AggregationKind.MAX_ROLLING_MEAN)
)


class ProbeEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A way to train directions. The constructor stores; `fit` checks, and leaves `served_`, what the artifact will carry.

    X is a sequence of texts, each its rows of states [n_i, D] (a list of arrays, or `Activations`, read one text at a time).
    Labels are two classes: bool, 0/1, -1/1, or names whose order nobody doubts (others: `as_bool` first). In a fit both classes
    weigh the same, and so does each group of near-duplicates. A fit runs on one thread, and done again gives the same numbers.

    aggregation: how readings become a score. strength: how far the data is followed against the prior that directions are
    short; for each kind it says what that means. Raises LabError, naming the text, for rows that are not finite or not as
    wide as the others; for labels of one class; for an aggregation that the kind cannot have.
    """

    accepts: ClassVar[frozenset[AggregationKind]]  # kinds of aggregation that it can be scored with
    aggregations: ClassVar[tuple[Aggregation, ...]]  # what is tried when nobody says which
    strengths: ClassVar[tuple[float, ...]]
    quick: ClassVar[bool] = False  # whether a fit takes one look at each text; others go over all rows tens of times

    aggregation: Aggregation
    strength: float
    served_: Served
    classes_: npt.NDArray[Any]  # [negative, positive], as they were given
    n_features_in_: int

    def fit(self, X: Texts, y: npt.ArrayLike, groups: Sequence[str] | None = None) -> Self:
        """Train. groups: names of near-duplicates, one a text; an empty name is a text of its own."""
        self._check()
        labels = self._labels(X, y)
        width = width_of(X)
        with one_thread():
            found = self._directions(X, labels, text_weights(labels, groups))
        self.served_ = serve(found, self.aggregation)
        self.n_features_in_ = width
        return self

    def decision_function(self, X: Texts) -> Array:
        """Each text's score, float64 [texts]: exactly what `served_` gives."""
        self._must_be_fitted()
        with one_thread():
            return self.served_.scores(_checked(X, self.n_features_in_))

    def predict_proba(self, X: Texts) -> Array:
        """Probability of either class, float64 [texts, 2]: the logistic of the score, before any calibration."""
        from scipy.special import expit

        positive = np.asarray(expit(self.decision_function(X)), dtype=np.float64)
        return np.stack([1.0 - positive, positive], axis=1)

    def predict(self, X: Texts) -> npt.NDArray[Any]:
        """The class whose side of 0 the score is on, as it was named in training."""
        return np.asarray(self.classes_[(self.decision_function(X) > 0).astype(np.intp)])

    @abstractmethod
    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        """Fit over raw rows; columns as the aggregation wants them."""

    def _check(self) -> None:
        if self.aggregation.kind not in self.accepts:
            known = ", ".join(sorted(kind.value for kind in self.accepts))
            raise LabError(f"{type(self).__name__} cannot be scored by {self.aggregation.kind.value}, but by: {known}")
        if not (np.isfinite(self.strength) and self.strength > 0):
            raise LabError(f"strength must be a number above 0, not {self.strength}")

    def _labels(self, X: Texts, y: npt.ArrayLike) -> BoolArray:
        given = np.asarray(y)
        labels = as_bool(given)
        if len(labels) != len(X):
            raise LabError(f"there are {len(X)} texts and {len(labels)} labels")
        self.classes_ = np.array([given[np.flatnonzero(~labels)[0]], given[np.flatnonzero(labels)[0]]])
        return labels

    def _must_be_fitted(self) -> None:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "served_")


def serve(found: Directions, aggregation: Aggregation) -> Served:
    """Round to the float32 that the artifact carries: what is measured afterwards is what will be served."""
    with np.errstate(over="ignore"):
        slopes, offsets = found.slopes.astype(np.float32), found.offsets.astype(np.float32)
    if not (np.isfinite(slopes).all() and np.isfinite(offsets).all()):
        raise LabError("the fit gave directions beyond float32: are the states' scales sound?")
    if not slopes.any(axis=0).all():
        raise LabError("the fit found nothing: a direction is all zeros (do the states differ between texts?)")
    return Served(slopes, offsets, aggregation)


def _checked(texts: Texts, width: int) -> Iterable[npt.NDArray[Any]]:
    return (text_rows(texts, index, width) for index in range(len(texts)))
