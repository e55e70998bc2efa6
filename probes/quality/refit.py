"""The same kind of probe trained again on other labels, at another tap point or on fewer texts: what the controls are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.kinds.registry import make_estimator
from probes.quality.rows import Rows
from probes.stages import Training
from probes.training.folds import units
from sidecar.types import BoolArray, FloatArray, TapPoint

if TYPE_CHECKING:
    from probes.activations.store import Activations, ActivationStore

Array = npt.NDArray[np.float64]
HELD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Refit:
    """As ``training`` did it: kind, aggregation, strength and seed; nothing is chosen again."""

    training: Training
    store: ActivationStore

    def scores(self, train: Rows, test: Rows, where: TapPoint | None = None) -> Array:
        """Train on the rows ``train`` and score ``test``, float64 [n]; at another tap point if one is given."""
        return self.fitter(train, test, where)(train.labels)

    def fitter(self, train: Rows, test: Rows, where: TapPoint | None = None) -> Callable[[BoolArray], Array]:
        """From labels of ``train``, true or not, to scores of ``test``; states are read once if they fit into `HELD_BYTES`."""
        told, point = self.training, TapPoint.parse(self.training.tap_point) if where is None else where
        seen, unseen = (_held(self.store.at(point, rows.at)) for rows in (train, test))
        groups = units(train.texts)

        def fit_and_score(labels: BoolArray) -> Array:
            estimator = make_estimator(told.kind, told.aggregation, told.strength, told.seed)
            return estimator.fit(seen, labels, groups).decision_function(unseen)

        return fit_and_score


def _held(states: Activations) -> Activations | list[FloatArray]:
    size = int(states.lengths.sum()) * states.width * 4
    return list(states) if size <= HELD_BYTES else states
