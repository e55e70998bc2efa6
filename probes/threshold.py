"""A threshold with a promise: the share of benign requests that fire stays under a target, with stated confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BenignThreshold:
    """Fire above ``value``: ``exceeding`` of ``rows`` benign scores do. Uncertified: too few rows to promise anything."""

    value: float
    exceeding: int
    rows: int
    certified: bool

    @property
    def measured_fpr(self) -> float:
        return self.exceeding / self.rows


def benign_threshold(scores: Array, target_fpr: float, *, confidence: float = CONFIDENCE) -> BenignThreshold:
    """Find the lowest threshold whose true false-positive rate is at most ``target_fpr`` with ``confidence``.

    scores: float64 [n], independent benign scores, n >= 1. The (k+1)-th largest score has a true rate above the target only if
    at most k scores lie in the benign distribution's top ``target_fpr``; the binomial tail bounds the chance of that, and k
    is the largest for which it is at most 1 - confidence. If not even k = 0 will do (fewer than 59 rows for 5 %), the
    largest score is returned, uncertified.

    >>> benign_threshold(np.arange(59.0), 0.05)
    BenignThreshold(value=58.0, exceeding=0, rows=59, certified=True)
    >>> benign_threshold(np.arange(58.0), 0.05).certified
    False
    """
    from scipy.stats import binom

    rows = len(scores)
    tails = binom.cdf(np.arange(rows), rows, target_fpr)
    allowed = int(np.searchsorted(tails, 1 - confidence, side="right")) - 1
    ordered = np.sort(scores)[::-1]
    value = float(ordered[max(allowed, 0)])
    return BenignThreshold(value, int((scores > value).sum()), rows, certified=allowed >= 0)


def clopper_pearson(hits: int, rows: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the exact two-sided interval of a share, ``hits`` of ``rows`` (Clopper and Pearson, 1934).

    >>> [round(edge, 4) for edge in clopper_pearson(0, 59)]
    [0.0, 0.0606]
    """
    from scipy.stats import beta

    half = (1 - confidence) / 2
    low = float(beta.ppf(half, hits, rows - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - half, hits + 1, rows - hits)) if hits < rows else 1.0
    return low, high
