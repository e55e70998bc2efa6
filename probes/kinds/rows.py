"""Texts as their rows: read one at a time, checked where they come in, pooled or cut into batches without holding them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.windows import Spans
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR, weights
from sidecar.types import FloatArray, IndexArray

Array = npt.NDArray[np.float64]
Texts = Sequence[npt.NDArray[Any]]
_MEAN = Aggregation(kind=AggregationKind.MEAN)


class Subset(Sequence[npt.NDArray[Any]]):
    """Some texts of others, in the given order; each is read when it is asked for.

    >>> Subset([np.zeros((1, 2)), np.ones((3, 2))], [1])[0].shape
    (3, 2)
    """

    def __init__(self, texts: Texts, rows: Sequence[int] | IndexArray) -> None:
        self._texts, self._rows = texts, [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, at: slice) -> Subset: ...
    def __getitem__(self, at: int | slice) -> npt.NDArray[Any] | Subset:
        return Subset(self._texts, self._rows[at]) if isinstance(at, slice) else self._texts[self._rows[at]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole texts end to end: ``rows`` float32 [t, D], text g from spans.starts[g] on; they are texts first, first + 1, ..."""

    rows: FloatArray
    spans: Spans
    first: int


def text_rows(texts: Texts, index: int, width: int | None = None) -> FloatArray:
    """Read one text's rows, float32 [n, D], n >= 1. Raises LabError naming the text if they are not such or not finite."""
    rows = np.asarray(texts[index], dtype=np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise LabError(f"text {index}: want rows of states [tokens, width], at least one, got shape {rows.shape}")
    if width is not None and rows.shape[1] != width:
        raise LabError(f"text {index}: its states are {rows.shape[1]} wide, want {width}")
    if not np.isfinite(rows).all():
        at = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise LabError(f"text {index}: a state is NaN or infinite, in row {at}")
    return rows


def held(texts: Texts, limit_bytes: int) -> Texts:
    """The texts in memory, if they fit into ``limit_bytes``; else as they came, to be read again whenever they are asked for."""
    kept: list[FloatArray] = []
    size = 0
    for index in range(len(texts)):
        kept.append(text_rows(texts, index))
        size += kept[-1].nbytes
        if size > limit_bytes:
            return texts
    return kept


def width_of(texts: Texts) -> int:
    """How wide the states are, by the first text. Raises LabError if there is none."""
    if not len(texts):
        raise LabError("there are no texts")
    return int(text_rows(texts, 0).shape[1])


def pooled(texts: Texts, aggregation: Aggregation, width: int | None = None) -> Array:
    """One vector a text, float64 [texts, D]: its rows weighted as a linear aggregation weighs readings, else their mean."""
    width = width_of(texts) if width is None else width
    found = np.empty((len(texts), width))
    for index in range(len(texts)):
        found[index] = pooled_text(texts, index, aggregation, width)
    return found


def pooled_text(texts: Texts, index: int, aggregation: Aggregation, width: int) -> Array:
    """One text's vector, float64 [D]."""
    rows = text_rows(texts, index, width)
    kind = aggregation if aggregation.kind in LINEAR else _MEAN
    return np.asarray(weights(kind, len(rows)) @ rows, dtype=np.float64)


class Pooled(Sequence[Array]):
    """Each text as its one pooled row, [1, D], computed when it is asked for."""

    def __init__(self, texts: Texts, aggregation: Aggregation) -> None:
        self._texts, self._aggregation, self._width = texts, aggregation, width_of(texts)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, at: int) -> Array: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Array]: ...
    def __getitem__(self, at: int | slice) -> Array | Sequence[Array]:
        if isinstance(at, slice):
            return [self[index] for index in range(len(self))[at]]
        return pooled_text(self._texts, at, self._aggregation, self._width)[None]


def batches(texts: Texts, width: int, limit_bytes: int) -> Iterator[Batch]:
    """Every text once and in order, in batches of about ``limit_bytes`` of states; a longer text is a batch of its own."""
    waiting: list[FloatArray] = []
    held = first = 0
    for index in range(len(texts)):
        rows = text_rows(texts, index, width)
        if waiting and held + rows.nbytes > limit_bytes:
            yield _batch(waiting, first)
            waiting, held, first = [], 0, index
        waiting.append(rows)
        held += rows.nbytes
    if waiting:
        yield _batch(waiting, first)


def _batch(waiting: Sequence[FloatArray], first: int) -> Batch:
    lengths = np.array([len(rows) for rows in waiting], dtype=np.intp)
    return Batch(np.concatenate(waiting), Spans(np.cumsum(lengths) - lengths, int(lengths.sum())), first)
