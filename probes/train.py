"""A plain probe: L2 logistic regression on pooled states. Layer, aggregation and strength are chosen on training rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.evaluate import auroc
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR, aggregate, weights
from probes.states import States
from sidecar.types import BoolArray, FloatArray

Array = npt.NDArray[np.float64]
SKIP_POSITIONS = 1
FOLDS = 5
STRENGTHS = (0.001, 0.01, 0.1)
AGGREGATIONS = (
    Aggregation(kind=AggregationKind.MEAN),
    Aggregation(kind=AggregationKind.LAST),
    Aggregation(kind=AggregationKind.EMA, window=10),
    Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN, window=10),
)


@dataclass(frozen=True, slots=True)
class Direction:
    """reading = x @ direction + offset, the standardisation folded in, in the float32 that the artifact will carry."""

    direction: FloatArray
    offset: float

    def read(self, rows: npt.NDArray[Any]) -> Array:
        """Readings of rows, [..., D] to float64 [...]."""
        return np.asarray(rows @ self.direction.astype(np.float64) + self.offset, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train, and its cross-validated AUROC on training rows with the standard error over folds."""

    layer: int
    aggregation: Aggregation
    strength: float
    auroc: float
    error: float


def pooled(states: States, indices: Sequence[int], aggregation: Aggregation) -> Array:
    """One vector a text, float64 [len(indices), D]. A max-like aggregation is trained on means."""
    kind = aggregation if aggregation.kind in LINEAR else Aggregation(kind=AggregationKind.MEAN)
    rows = np.empty((len(indices), states.tails.shape[1]))
    for at, index in enumerate(indices):
        text = states.text(index)[SKIP_POSITIONS:]
        rows[at] = weights(kind, len(text)) @ text
    return rows


def fit_direction(features: Array, labels: BoolArray, strength: float) -> Direction:
    """Fit on standardised features and fold the standardisation into direction and offset. Deterministic."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1.0
    # One thread: the sums of several come in any order, and the artifact must come out the same twice.
    with threadpool_limits(1):
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit((features - mean) / spread, labels)
    slope = model.coef_[0] / spread
    return Direction(slope.astype(np.float32), float(np.float32(model.intercept_[0] - mean @ slope)))


def scores(
    states: States,
    indices: Sequence[int],
    direction: Direction,
    aggregation: Aggregation,
    *,
    first: int = SKIP_POSITIONS,
) -> Array:
    """Each text's aggregated reading from position ``first`` on, as the service computes it, float64 [len(indices)].

    A text's last row is always read: it is the one that no prefix cache can hide.
    """
    prefix, tails = direction.read(states.prefix), direction.read(states.tails)
    found = [np.concatenate([prefix, tails[states.starts[i] : states.starts[i + 1]]]) for i in indices]
    return np.array([aggregate(readings[min(first, len(readings) - 1) :], aggregation) for readings in found])


def survey(states: Mapping[int, States], labels: BoolArray, indices: Sequence[int]) -> list[Choice]:
    """Cross-validate every layer, aggregation and strength on the rows ``indices`` alone; best strength each."""
    return [
        max(
            (_cross_validate(of_layer, labels, indices, layer, aggregation, strength) for strength in STRENGTHS),
            key=lambda choice: choice.auroc,
        )
        for layer, of_layer in sorted(states.items())
        for aggregation in AGGREGATIONS
    ]


def choose(choices: Sequence[Choice]) -> Choice:
    """Take the earliest layer within one standard error of the best, and there the best aggregation."""
    best = max(choices, key=lambda choice: choice.auroc)
    enough = [choice for choice in choices if choice.auroc >= best.auroc - best.error]
    earliest = min(choice.layer for choice in enough)
    return max((choice for choice in enough if choice.layer == earliest), key=lambda choice: choice.auroc)


def _cross_validate(
    states: States,
    labels: BoolArray,
    indices: Sequence[int],
    layer: int,
    aggregation: Aggregation,
    strength: float,
) -> Choice:
    from sklearn.model_selection import StratifiedKFold

    rows = np.asarray(indices)
    features = pooled(states, indices, aggregation)
    found = []
    for train, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, labels[rows]):
        direction = fit_direction(features[train], labels[rows[train]], strength)
        if aggregation.kind in LINEAR:
            values = direction.read(features[held_out])
        else:
            values = scores(states, rows[held_out].tolist(), direction, aggregation)
        found.append(auroc(values, labels[rows[held_out]]))
    return Choice(layer, aggregation, strength, float(np.mean(found)), float(np.std(found, ddof=1) / FOLDS**0.5))
