"""Probabilities from scores: a temperature, Platt's line, or an isotonic table, fitted on rows that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.isotonic import along
from probes.manifest import KNOTS, Calibration
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
EVEN = 0.5
_EDGE = 1e-12


class Method(StrEnum):
    """A temperature keeps the score's own zero, where training put even odds; Platt moves it; isotonic follows any rise."""

    TEMPERATURE = "temperature"
    PLATT = "platt"
    ISOTONIC = "isotonic"


@dataclass(frozen=True, slots=True)
class Scaling:
    """What an artifact will carry, and base: the share of positives that its probabilities speak of.

    ``calibration.kind`` is none if the scores do not rise with the label: then nothing was fitted, and the evaluation says so.

    >>> Scaling(Calibration(kind="temperature", scale=2.0), base=0.5)(np.array([0.0, 1.0])).round(3).tolist()
    [0.5, 0.881]
    """

    calibration: Calibration
    base: float

    @property
    def fitted(self) -> bool:
        return self.calibration.kind != "none"

    def __call__(self, scores: Array) -> Array:
        return probabilities(self.calibration, scores)

    def moved(self, prior: float) -> Scaling:
        """Speak of another share of positives: every odds times the ratio of the priors' odds (Saerens et al., 2002)."""
        shift, told = _logit(prior) - _logit(self.base), self.calibration
        if told.knots is None:
            return Scaling(Calibration(kind=told.kind, scale=told.scale, offset=told.offset + shift), prior)
        shares = np.maximum.accumulate([_shifted(share, shift) for _, share in told.knots])
        return Scaling(_table([score for score, _ in told.knots], shares.tolist()), prior)


def probabilities(calibration: Calibration, scores: Array) -> Array:
    """What a calibration makes of scores, float64 [n]."""
    from scipy.special import expit

    if calibration.knots is not None:
        return along(np.array(calibration.knots), scores)
    return np.asarray(expit(calibration.scale * scores + calibration.offset), dtype=np.float64)


def fit_scaling(method: Method, scores: Array, labels: BoolArray) -> Scaling:
    """Fit one; both classes must be there.

    Temperature: both classes weigh the same, as they did in training, so that it speaks of even odds (Guo et al., 2017). Platt
    and isotonic speak of these rows' share of positives. Targets are Platt's (1999), a little off 0 and 1, so that rows which
    are parted without error give a finite scale.
    """
    share = float(labels.mean())
    if not _rises(scores, labels):
        return Scaling(Calibration(kind="none"), EVEN)
    if method is Method.ISOTONIC:
        return Scaling(_isotonic(scores, labels), share)
    found = _temperature(scores, labels) if method is Method.TEMPERATURE else _platt(scores, labels)
    if found is None:
        return Scaling(Calibration(kind="none"), EVEN)
    return Scaling(found, EVEN if method is Method.TEMPERATURE else share)


def _rises(scores: Array, labels: BoolArray) -> bool:
    from probes.auroc import auroc

    return auroc(scores, labels) > EVEN


def _targets(labels: BoolArray) -> Array:
    positives, negatives = int(labels.sum()), int((~labels).sum())
    return np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _temperature(scores: Array, labels: BoolArray) -> Calibration | None:
    """The likeliest scale: where the likelihood's slope, which only falls, crosses zero. None if that is not above zero."""
    from scipy.optimize import brentq
    from scipy.special import expit

    targets = _targets(labels)
    pull = np.where(labels, 0.5 / labels.mean(), 0.5 / (~labels).mean()) * scores

    def slope(scale: float) -> float:
        return float(pull @ (targets - expit(scale * scores)))

    if slope(0.0) <= 0:
        return None
    high = 1.0 / float(np.abs(scores).max())
    while slope(high) > 0:
        high *= 2
    return Calibration(kind="temperature", scale=float(brentq(slope, 0.0, high)))


def _platt(scores: Array, labels: BoolArray) -> Calibration | None:
    """The likeliest line through standardised scores, told for scores as they come. None if it falls."""
    from scipy.optimize import minimize
    from scipy.special import expit

    targets = _targets(labels)
    mean, spread = float(scores.mean()), float(scores.std())
    lines = np.stack([(scores - mean) / spread, np.ones(len(scores))], axis=1)  # [n, 2]

    def wrong(line: Array) -> tuple[float, Array]:
        logits = lines @ line
        return float((np.logaddexp(0, logits) - targets * logits).mean()), lines.T @ (expit(logits) - targets) / len(
            scores
        )

    slope, offset = minimize(wrong, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x.tolist()
    if not slope > 0:
        return None
    return Calibration(kind="platt", scale=slope / spread, offset=offset - slope * mean / spread)


def _isotonic(scores: Array, labels: BoolArray) -> Calibration:
    """Corners of the nearest never-falling curve (Zadrozny and Elkan, 2002), as many as an artifact carries."""
    from sklearn.isotonic import IsotonicRegression

    model: Any = IsotonicRegression(y_min=0.0, y_max=1.0).fit(scores, labels.astype(np.float64))
    at, shares = np.asarray(model.X_thresholds_), np.asarray(model.y_thresholds_)
    kept = thinned(np.searchsorted(np.sort(scores), at).astype(np.float64), shares, KNOTS)
    return _table(at[kept].tolist(), shares[kept].tolist())


def thinned(at: Array, told: Array, most: int) -> IndexArray:
    """Which ``most`` >= 2 corners of a curve to keep: again and again the one goes whose loss changes the area below it least.

    at: float64 [n], rising; told: float64 [n]. The first and the last stay. O(n^2).

    >>> thinned(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.1, 1.0]), 3).tolist()
    [0, 2, 3]
    """
    kept = np.arange(len(at))
    while len(kept) > most:
        run, rise = np.diff(at[kept]), np.diff(told[kept])
        kept = np.delete(kept, 1 + int(np.abs(run[:-1] * rise[1:] - run[1:] * rise[:-1]).argmin()))
    return kept


def _table(scores: Sequence[float], shares: Sequence[float]) -> Calibration:
    return Calibration(kind="isotonic", knots=tuple(zip(scores, shares, strict=True)))


def _logit(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))


def _shifted(share: float, shift: float) -> float:
    """A knot at 0 or 1 stays there, to within what a float can tell."""
    from scipy.special import expit

    return share if share in {0.0, 1.0} else float(expit(_logit(min(max(share, _EDGE), 1 - _EDGE)) + shift))
