"""What a score or a probability is worth on labelled rows, in numbers."""

from __future__ import annotations

from math import ceil, log

import numpy as np
import numpy.typing as npt

from probes.stages import OperatingPoint
from probes.threshold import CONFIDENCE, clopper_pearson
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
PARTIAL = (1e-3, 1e-1)
POINTS = 200
_BINS = 10
_BIN_ROWS = 20


def roc(scores: Array, labels: BoolArray) -> tuple[Array, Array]:
    """Shares of negatives and of positives at or above each distinct score, from (0, 0) to (1, 1); both classes there."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], labels[order]
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    fpr = np.concatenate([[0.0], np.cumsum(~hits)[last] / (~hits).sum()])
    return fpr, np.concatenate([[0.0], np.cumsum(hits)[last] / hits.sum()])


def partial_auroc(scores: Array, labels: BoolArray, between: tuple[float, float] = PARTIAL) -> float:
    """Area under the ROC curve between two false-positive rates, scaled so that chance is .5 and the best 1 (McClish, 1989).

    >>> partial_auroc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    1.0
    """
    low, high = between
    fpr, tpr = roc(scores, labels)
    run = np.diff(fpr)
    slope = np.divide(np.diff(tpr), run, out=np.zeros_like(run), where=run > 0)
    left, right = np.clip(fpr[:-1], low, high), np.clip(fpr[1:], low, high)
    middle = tpr[:-1] + slope * ((left + right) / 2 - fpr[:-1])
    area = float((middle * (right - left)).sum())
    chance, best = (high**2 - low**2) / 2, high - low
    return min((1 + (area - chance) / (best - chance)) / 2, 1.0)


def curve(scores: Array, labels: BoolArray, points: int = POINTS) -> tuple[tuple[float, float], ...]:
    """The ROC curve for drawing, as (FPR, TPR), thinned to about so many points."""
    fpr, tpr = roc(scores, labels)
    kept = np.unique(np.linspace(0, len(fpr) - 1, min(points, len(fpr))).round().astype(int))
    return tuple((float(fpr[at]), float(tpr[at])) for at in kept)


def rows_to_certify(fpr: float, confidence: float = CONFIDENCE) -> int:
    """How many benign rows, none of them firing, show a false-positive rate of at most ``fpr``.

    >>> [rows_to_certify(fpr) for fpr in (0.05, 0.01, 0.001)]
    [59, 299, 2995]
    """
    return ceil(log(1 - confidence) / log(1 - fpr))


def fpr_to_certify(rows: int, confidence: float = CONFIDENCE) -> float:
    """The lowest false-positive rate that so many benign rows can show, if none of them fires: the inverse of `rows_to_certify`.

    >>> [round(fpr_to_certify(rows), 4) for rows in (40, 59, 299)]
    [0.0722, 0.0495, 0.01]
    """
    return float(1 - (1 - confidence) ** (1 / rows))


def operating_point(scores: Array, probabilities: Array, labels: BoolArray, fpr: float) -> OperatingPoint:
    """Recall at the lowest threshold above which at most a share ``fpr`` of these benign rows lie.

    Rows are ranked by score; the threshold is told as a probability. The interval is Clopper and Pearson's, of the recall at this
    threshold. ``held`` is False with fewer benign rows than could ever show that rate.
    """
    benign = np.flatnonzero(~labels)
    at = benign[np.argsort(-scores[benign], kind="stable")[int(fpr * len(benign))]]
    hits, positives = int((scores[labels] > scores[at]).sum()), int(labels.sum())
    return OperatingPoint(
        fpr=fpr,
        threshold=float(probabilities[at]),
        tpr=hits / positives,
        tpr_interval=clopper_pearson(hits, positives),
        held=len(benign) >= rows_to_certify(fpr),
    )


def prior_weights(labels: BoolArray, prior: float | None) -> Array:
    """What each row counts for if the share of positives were ``prior``, [n] with a mean of 1; all the same for None."""
    if prior is None:
        return np.ones(len(labels))
    share = float(labels.mean())
    return np.where(labels, prior / share, (1 - prior) / (1 - share))


def reliability(probabilities: Array, labels: BoolArray, weights: Array) -> tuple[tuple[float, float, int], ...]:
    """(mean probability, share of positives, rows) of up to ten bins with about as many rows each, at least twenty."""

    def mean(values: Array, rows: IndexArray) -> float:
        return float(np.average(values[rows], weights=weights[rows]))

    truth = labels.astype(np.float64)
    return tuple((mean(probabilities, rows), mean(truth, rows), len(rows)) for rows in _bins(probabilities))


def ece(probabilities: Array, labels: BoolArray, weights: Array | None = None) -> float:
    """Expected calibration error: how far the bins of `reliability` lie from the truth, on average (Naeini et al., 2015).

    With n rows in a bin even a perfect probability is off by about .4 / sqrt(n) in the middle: read it beside the row count.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    gaps = [abs(told - true) for told, true, _ in reliability(probabilities, labels, weights)]
    return float(np.average(gaps, weights=[weights[rows].sum() for rows in _bins(probabilities)]))


def brier(probabilities: Array, labels: BoolArray, weights: Array | None = None) -> float:
    """Mean squared distance of probability and truth (Brier, 1950).

    >>> brier(np.array([1.0, 0.5]), np.array([True, False]))
    0.125
    """
    return float(np.average((probabilities - labels) ** 2, weights=weights))


def _bins(probabilities: Array) -> list[IndexArray]:
    """Rows by bin, by rising probability; equal probabilities are never parted."""
    from scipy.stats import rankdata

    rows = len(probabilities)
    bins = max(1, min(_BINS, rows // _BIN_ROWS))
    place = ((rankdata(probabilities) - 0.5) / rows * bins).astype(np.intp)
    return [np.flatnonzero(place == one) for one in np.unique(place)]
