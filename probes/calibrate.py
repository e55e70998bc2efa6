"""From a request's aggregated reading to a probability and a decision, both set on rows that training never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.threshold import BenignThreshold, benign_threshold
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
_UNREGULARISED = 1e6


@dataclass(frozen=True, slots=True)
class Platt:
    """probability = sigmoid(scale * reading + offset) (Platt, 1999). It speaks of the calibration set's share of positives."""

    scale: float
    offset: float

    def __call__(self, readings: Array) -> Array:
        from scipy.special import expit

        return np.asarray(expit(self.scale * readings + self.offset), dtype=np.float64)


def fit_platt(readings: Array, labels: BoolArray) -> Platt:
    """Raises ValueError if higher readings do not mean more positives: such a probe has nothing to calibrate."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=_UNREGULARISED, max_iter=1000).fit(readings[:, None], labels)
    scale, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if not scale > 0:
        raise ValueError("the readings do not rise with the label")
    return Platt(scale, offset)


def threshold_for(platt: Platt, readings: Array, labels: BoolArray, target_fpr: float) -> BenignThreshold:
    """Set the threshold on the benign rows' probabilities.

    That the same rows fitted the calibration breaks no promise: it is increasing, so which rows exceed which is untouched.
    """
    return benign_threshold(platt(readings[~labels]), target_fpr)
