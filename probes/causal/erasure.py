"""LEACE (arXiv 2306.03819): the least change to states after which no linear probe reads the concept; and the proof by refit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR, weights
from sidecar.types import BoolArray, FloatArray

Array = npt.NDArray[np.float64]
# What is left of a correlation below this is rounding (float64; in float32 an erased concept was still read at .804).
_SVD_TOLERANCE = 1e-9
_CHANCE_ERRORS = 3.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """x - left @ right.T @ (x - mean), left and right: float64 [D, 1], mean: [D].

    whiten, unwhiten: [D, D], symmetric, of the (shrunk) covariance that it was fitted in.
    """

    left: Array
    right: Array
    mean: Array
    whiten: Array
    unwhiten: Array

    def __call__(self, pooled: Array) -> Array:
        """Erase the concept from rows [n, D]."""
        return np.asarray(pooled - ((pooled - self.mean) @ self.right) @ self.left.T)

    def at_random(self, draws: np.random.Generator) -> tuple[Array, Array]:
        """Left and right of an erasure of nothing in particular: the same operation along a random direction of the same metric."""
        aim = draws.standard_normal((len(self.mean), 1))
        aim /= np.linalg.norm(aim)
        return self.unwhiten @ aim, self.whiten @ aim


@dataclass(frozen=True, slots=True)
class Refit:
    """Held-out AUROC of a new probe on the data as it was, and on erased data; chance reaches from .5 as far as ``slack``."""

    before: float
    after: float
    slack: float

    @property
    def unreadable(self) -> bool:
        return abs(self.after - 0.5) <= self.slack


def pooled(texts: Sequence[FloatArray], rows: Sequence[int], aggregation: Aggregation) -> Array:
    """One state a text, float64 [rows, D]: pooled as the probe pools, or averaged where that is not a weighted sum."""
    by = aggregation if aggregation.kind in LINEAR else Aggregation(kind=AggregationKind.MEAN)
    return np.stack([weights(by, len(text)) @ text.astype(np.float64) for text in (texts[row] for row in rows)])


def fit_erasure(states: Array, labels: BoolArray) -> Erasure:
    """Fit on rows [n, D], in float64. Pooling and erasing commute, so it erases the concept from single states' average."""
    import torch

    # A bound on the trace would mix in a projection that leaves the concept readable; there is no need for it at one place.
    fitter = _fitter()(
        states.shape[1], 1, dtype=torch.float64, constrain_cov_trace=False, svd_tol=_SVD_TOLERANCE
    ).update(torch.from_numpy(states), torch.from_numpy(labels.astype(np.float64)))
    eraser = fitter.eraser
    values, vectors = np.linalg.eigh(fitter.sigma_xx.numpy())
    sound = values > values[-1] * len(values) * np.finfo(np.float64).eps
    sizes = np.sqrt(np.where(sound, values, 1.0))
    return Erasure(
        left=eraser.proj_left.numpy(),
        right=eraser.proj_right.numpy().T,
        mean=fitter.mean_x.numpy(),
        whiten=(vectors * np.where(sound, 1 / sizes, 0.0)) @ vectors.T,
        unwhiten=(vectors * np.where(sound, sizes, 0.0)) @ vectors.T,
    )


def refit(
    erasures: Sequence[Erasure],
    train: Sequence[Array],
    labels: BoolArray,
    test: Sequence[Array],
    test_labels: BoolArray,
) -> Refit:
    """Train a probe on training rows and score test rows, before and after erasing both.

    Each entry is of one tap point, and the new probe reads all of them together. A concept that no linear probe reads at any one
    of them, no linear probe reads from all: what LEACE takes out is its covariance with every coordinate.
    """
    positives, negatives = int(test_labels.sum()), int((~test_labels).sum())
    error = float(np.sqrt((positives + negatives + 1) / (12 * positives * negatives)))
    return Refit(
        before=auroc(_scores(np.hstack(train), labels, np.hstack(test)), test_labels),
        after=auroc(_scores(_erased(erasures, train), labels, _erased(erasures, test)), test_labels),
        slack=_CHANCE_ERRORS * error,
    )


def _erased(erasures: Sequence[Erasure], states: Sequence[Array]) -> Array:
    return np.hstack([erasure(part) for erasure, part in zip(erasures, states, strict=True)])


def _scores(train: Array, labels: BoolArray, test: Array) -> Array:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train, labels)
    return np.asarray(probe.decision_function(test), dtype=np.float64)


def _fitter() -> Any:
    """Of the package; as it is imported, it says that it uses something of torch's that is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from concept_erasure import LeaceFitter
    return LeaceFitter
