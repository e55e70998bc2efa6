"""A trained probe as it will be served: directions, offsets, and how readings become a score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.artifact import Artifact
from probes.errors import LabError
from probes.manifest import Aggregation
from probes.pooling import aggregate
from sidecar.types import FloatArray

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Served:
    """directions: float32 [D, K]; offsets: float32 [K]; K = aggregation.columns. Standardisation is folded in.

    Where a probe reads several tap points, rows are theirs side by side (`probes.kinds.beside`), and D counts all of them.

    >>> probe = Served(np.eye(2, 1, dtype=np.float32), np.zeros(1, np.float32), Aggregation(kind="mean"))
    >>> probe.scores([np.array([[1.0, 9.0], [3.0, 9.0]], np.float32)])
    array([2.])
    """

    directions: FloatArray
    offsets: FloatArray
    aggregation: Aggregation

    @classmethod
    def of(cls, artifact: Artifact) -> Served:
        """From an artifact, which has the directions of each tap point in turn: here they stand below each other."""
        about = artifact.manifest
        if about.aggregation is None:
            raise LabError(f"{about.name}: a {about.kind.value} has no score")
        parts, offsets = (
            np.split(array, len(about.everywhere), axis=-1) for array in (artifact.directions, artifact.offsets)
        )
        return cls(np.concatenate(parts), np.sum(offsets, axis=0, dtype=np.float32), about.aggregation)

    def apart(self, count: int) -> tuple[Served, ...]:
        """What it reads at each of ``count`` equally wide tap points, [D / count, K] each; the first one has the offsets.

        Raises LabError if it is not of so many.
        """
        if len(self.directions) % count:
            raise LabError(f"directions of {len(self.directions)} features are not of {count} tap points of one width")
        return tuple(
            Served(part, np.zeros_like(self.offsets) if at else self.offsets, self.aggregation)
            for at, part in enumerate(np.split(self.directions, count))
        )

    def read(self, rows: npt.NDArray[Any]) -> Array:
        """Readings of rows [n, D]: float64 [n, K]."""
        return np.asarray(rows @ self.directions.astype(np.float64) + self.offsets, dtype=np.float64)

    def scores(self, texts: Iterable[npt.NDArray[Any]]) -> Array:
        """Each text's score, float64 [texts]; a text is its rows, [n, D] with n >= 1."""
        return np.array([aggregate(self.read(rows), self.aggregation) for rows in texts], dtype=np.float64)
