"""One probe over several tap points at once: their readings are added up, token by token, before they are aggregated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, overload

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.base import POOLED, ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES, Directions
from probes.kinds.logistic import ONE_COLUMN, Logistic
from probes.kinds.rows import Texts, text_rows, width_of
from probes.manifest import Aggregation, AggregationKind
from probes.serving import Served
from sidecar.types import BoolArray, FloatArray, TapPoint

Array = npt.NDArray[np.float64]


class Beside(Sequence[npt.NDArray[Any]]):
    """Texts whose rows are those of several tap points side by side, put together when they are asked for.

    >>> Beside([[np.zeros((2, 3))], [np.ones((2, 1))]])[0].shape
    (2, 4)
    """

    def __init__(self, layers: Sequence[Texts]) -> None:
        if len({len(layer) for layer in layers}) != 1:
            raise LabError(f"tap points have {', '.join(str(len(layer)) for layer in layers)} texts: want as many each")
        self.widths = tuple(width_of(layer) for layer in layers)
        self._layers = tuple(layers)

    def __len__(self) -> int:
        return len(self._layers[0])

    @overload
    def __getitem__(self, at: int) -> FloatArray: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[FloatArray]: ...
    def __getitem__(self, at: int | slice) -> FloatArray | Sequence[FloatArray]:
        if isinstance(at, slice):
            return [self[index] for index in range(len(self))[at]]
        rows = [text_rows(layer, at, width) for layer, width in zip(self._layers, self.widths, strict=True)]
        if len({len(part) for part in rows}) != 1:
            raise LabError(f"text {at}: tap points have {', '.join(str(len(part)) for part in rows)} rows of it")
        return np.concatenate(rows, axis=1)


class Concatenation(ProbeEstimator):
    """Logistic over the concatenated states of several tap points: X is `Beside`, the texts of each, in the order of tap_points.

    `served_layers_` has each tap point's own directions; the score aggregates the sum of their readings. A draft has one tap
    point: this kind says what more of them would bring.

    tap_points: their names. strength, memory_bytes: as for `Logistic`.
    """

    accepts: ClassVar[frozenset[AggregationKind]] = ONE_COLUMN
    aggregations: ClassVar[tuple[Aggregation, ...]] = POOLED
    strengths: ClassVar[tuple[float, ...]] = Logistic.strengths

    served_layers_: dict[TapPoint, Served]

    def __init__(
        self,
        tap_points: Sequence[str] = (),
        aggregation: Aggregation = POOLED[0],
        strength: float = 0.01,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.tap_points = tap_points
        self.aggregation = aggregation
        self.strength = strength
        self.memory_bytes = memory_bytes

    def fit(self, X: Texts, y: npt.ArrayLike, groups: Sequence[str] | None = None) -> Self:
        if not isinstance(X, Beside) or len(X.widths) != len(self.tap_points):
            raise LabError(f"X must be Beside([...]) with the states of {len(self.tap_points)} tap points")
        points = [TapPoint.parse(name) for name in self.tap_points]
        if len(set(points)) != len(points):
            raise LabError(f"a tap point is named twice: {', '.join(self.tap_points)}")
        super().fit(X, y, groups)
        parts, offsets = np.split(self.served_.directions, np.cumsum(X.widths)[:-1]), self.served_.offsets
        self.served_layers_ = {
            point: Served(part, offsets * np.float32(at == 0), self.aggregation)
            for at, (point, part) in enumerate(zip(points, parts, strict=True))
        }
        return self

    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        return Logistic(self.aggregation, self.strength, self.memory_bytes)._directions(texts, labels, weights)  # noqa: SLF001
