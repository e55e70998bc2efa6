"""The same kind of probe trained again on other labels, at another tap point or on fewer texts: what the controls are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.kinds.beside import states_at
from probes.kinds.registry import make_estimator
from probes.kinds.rows import held
from probes.quality.rows import Rows
from probes.stages import Places, Training
from probes.training.folds import units
from sidecar.types import BoolArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
HELD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Refit:
    """As ``training`` did it: kind, aggregation, strength and seed; nothing is chosen again."""

    training: Training
    store: ActivationStore

    def scores(self, train: Rows, test: Rows, everywhere: Places = ()) -> Array:
        """Train on the rows ``train`` and score ``test``, float64 [n]; at other tap points if any are given."""
        return self.fitter(train, test, everywhere)(train.labels)

    def fitter(self, train: Rows, test: Rows, everywhere: Places = ()) -> Callable[[BoolArray], Array]:
        """From labels of ``train``, true or not, to scores of ``test``; states are read once if they fit into `HELD_BYTES`."""
        told, places = self.training, everywhere or self.training.everywhere
        seen, unseen = (held(states_at(self.store, places, rows.at), HELD_BYTES) for rows in (train, test))
        groups = units(train.texts)

        def fit_and_score(labels: BoolArray) -> Array:
            estimator = make_estimator(told.kind, told.aggregation, told.strength, told.seed)
            return estimator.fit(seen, labels, groups).decision_function(unseen)

        return fit_and_score
