"""A positive control: a direction that reads how deep in the model a row was taken, and so whether the hook sits right.

Ridge regression of a block's distance from the tap point on its states: rows of the right block read near 0 whatever the text
says, rows of other blocks read off. It is trained on rows from all the blocks around the tap point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.kinds.threads import one_thread
from sidecar.types import FloatArray

Array = npt.NDArray[np.float64]
SKIP_POSITIONS = 1
_RIDGE = 100.0
# The range holds 99 % of the training rows, and a tenth of its width more on either side for texts of other kinds.
_TAILS = (0.005, 0.995)
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Direction:
    """reading = x @ direction + offset, the standardisation folded in, in the float32 that the artifact will carry."""

    direction: FloatArray
    offset: float

    def read(self, rows: npt.NDArray[Any]) -> Array:
        """Readings of rows, [..., D] to float64 [...]."""
        return np.asarray(rows @ self.direction.astype(np.float64) + self.offset, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float

    def outside(self, readings: Array) -> float:
        """Share of readings that do not lie in the range; a NaN does not."""
        return float(np.mean(~((readings >= self.low) & (readings <= self.high))))


@dataclass(frozen=True, slots=True)
class Control:
    """The direction, the range of its readings at the right block."""

    direction: Direction
    range: Range


def fit_control(rows: Mapping[int, Array], layer: int) -> Control:
    """Fit on rows by layer, float64 [N, D] each, ``layer`` and its neighbours among them. Deterministic."""
    features = np.concatenate([rows[at] for at in sorted(rows)])
    distances = np.concatenate([np.full(len(rows[at]), float(at - layer)) for at in sorted(rows)])
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1.0
    scaled = (features - mean) / spread
    with one_thread():
        gram = scaled.T @ scaled + _RIDGE * np.eye(scaled.shape[1])
        slope = np.linalg.solve(gram, scaled.T @ (distances - distances.mean())) / spread
    direction = Direction(slope.astype(np.float32), float(np.float32(distances.mean() - mean @ slope)))
    return Control(direction, _range(direction.read(rows[layer])))


def _range(readings: Array) -> Range:
    low, high = np.quantile(readings, _TAILS)
    margin = _MARGIN * (high - low)
    return Range(float(low - margin), float(high + margin))
