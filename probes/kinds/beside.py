"""Texts whose rows are those of several tap points side by side: what a probe of several layers is trained on and scored by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.rows import Texts, text_rows, width_of
from probes.stages import Places
from sidecar.types import FloatArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore


class Beside(Sequence[npt.NDArray[Any]]):
    """The texts of several tap points, in the order of their layers; rows are put together when they are asked for.

    A direction over such rows is one direction a tap point, whose readings are added up, token by token, before they are
    aggregated: so every kind can be trained over several tap points, and the service needs no more than a sum.

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


def states_at(store: ActivationStore, everywhere: Places, rows: Sequence[int] | None = None) -> Texts:
    """Texts of a store, all or those at ``rows``, as a probe of these tap points reads them.

    Raises LabError if one was not collected.
    """
    layers = [store.at(where, rows) for where in everywhere]
    return layers[0] if len(layers) == 1 else Beside(layers)
