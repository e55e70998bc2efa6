"""A trained probe as it will be served: directions, offsets, and how readings become a score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.manifest import Aggregation
from probes.pooling import aggregate
from sidecar.types import FloatArray

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Served:
    """directions: float32 [D, K]; offsets: float32 [K]; K = aggregation.columns. Standardisation is folded in.

    >>> probe = Served(np.eye(2, 1, dtype=np.float32), np.zeros(1, np.float32), Aggregation(kind="mean"))
    >>> probe.scores([np.array([[1.0, 9.0], [3.0, 9.0]], np.float32)])
    array([2.])
    """

    directions: FloatArray
    offsets: FloatArray
    aggregation: Aggregation

    def read(self, rows: npt.NDArray[Any]) -> Array:
        """Readings of rows [n, D]: float64 [n, K]."""
        return np.asarray(rows @ self.directions.astype(np.float64) + self.offsets, dtype=np.float64)

    def scores(self, texts: Iterable[npt.NDArray[Any]]) -> Array:
        """Each text's score, float64 [texts]; a text is its rows, [n, D] with n >= 1."""
        return np.array([aggregate(self.read(rows), self.aggregation) for rows in texts], dtype=np.float64)
