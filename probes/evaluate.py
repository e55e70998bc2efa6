"""How good a score is, and whether it is better than another on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
RESAMPLES = 2000
SHUFFLES = 20
SHUFFLED_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """AUROCs of a probe and of its best rival on the same rows, with 95 % paired bootstrap intervals."""

    auroc: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]


def auroc(scores: Array, labels: BoolArray) -> float:
    """Return the chance that a positive's score lies above a negative's, ties counting half (Mann and Whitney, 1947).

    Raises ValueError if either class is missing.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError("AUROC needs both classes")
    ranks = float(rankdata(scores)[labels].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def compare(probe: Array, rival: Array, labels: BoolArray, *, seed: int) -> Comparison:
    """Resample rows (both classes apart, so that neither vanishes) and score both on each resample. O(rows^2) memory."""
    draws = np.random.default_rng(seed)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    drawn_positives = draws.multinomial(positives, np.full(positives, 1 / positives), RESAMPLES)  # [R, P] times drawn
    drawn_negatives = draws.multinomial(negatives, np.full(negatives, 1 / negatives), RESAMPLES)  # [R, N]
    # An AUROC is the mean over all pairs, so a resample's is that mean weighted by how often each row was drawn.
    own, other = (
        ((drawn_positives @ _in_order(scores, labels)) * drawn_negatives).sum(axis=1) / (positives * negatives)
        for scores in (probe, rival)
    )
    return Comparison(
        auroc=auroc(probe, labels),
        interval=_interval(own),
        gain=auroc(probe, labels) - auroc(rival, labels),
        gain_interval=_interval(own - other),
    )


def shuffled_auroc(
    fit_and_score: Callable[[BoolArray], Array], train: BoolArray, test: BoolArray, *, seed: int
) -> float:
    """Mean held-out AUROC of probes trained on shuffled labels: 0.5 unless something leaks.

    Labels are shuffled so that they agree with the true ones exactly as often as chance would have it: a shuffle that
    happens to agree more often would teach a little of the truth. fit_and_score: trains on the given training labels and
    returns the test rows' scores.
    """
    draws = np.random.default_rng(seed)
    return float(np.mean([auroc(fit_and_score(shuffled_labels(train, draws)), test) for _ in range(SHUFFLES)]))


def _in_order(scores: Array, labels: BoolArray) -> Array:
    """For each positive and negative, [P, N]: 1 if the positive's score is higher, a half for a tie, else 0."""
    higher, lower = scores[labels][:, None], scores[~labels][None, :]
    return np.asarray((higher > lower) + 0.5 * (higher == lower), dtype=np.float64)


def shuffled_labels(labels: BoolArray, draws: np.random.Generator) -> BoolArray:
    """Give each class the same share of positive labels."""
    shuffled = np.zeros_like(labels)
    for of_class in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        count = round(float(labels.mean()) * len(of_class))
        shuffled[draws.permutation(of_class)[:count]] = True
    return shuffled


def _interval(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
