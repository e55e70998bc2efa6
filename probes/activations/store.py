"""Activations on disk: every text's rows at every tap point, with what they were taken from. More than memory is normal."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from probes.activations.encoding import decode
from probes.activations.facts import StoreFacts
from probes.activations.index import Index, read_index, read_texts
from probes.activations.tensors import TensorFile
from probes.activations.writer import open_shard
from probes.data.texts import LabelledText
from probes.errors import LabError
from sidecar.types import FloatArray, TapPoint

__all__ = ["ActivationStore", "Activations", "StoreFacts"]

# Mapped arrays that stay open: each is an open file, and a process may have 1,024.
_MAPS = 256


class ActivationStore:
    """A whole store. Opened by `open`; reads nothing of the states before they are asked for.

    texts, places: in the store's order; a place says where a text came from ("train.csv row 7"). lengths: int64 [texts], rows
    of each text: its tokens without the skipped positions, but always its last.
    """

    def __init__(self, folder: Path, index: Index, shards: Sequence[TensorFile]) -> None:
        self.folder = folder
        self.facts: StoreFacts = index.facts
        self.digest: str = index.digest
        self.lengths: npt.NDArray[np.int64] = index.lengths
        self.texts: tuple[LabelledText, ...]
        self.places: tuple[str, ...]
        self.texts, self.places = read_texts(folder)
        self._index = index
        self._shards = shards
        self._shard_of, self._start = _whereabouts(index)
        self._maps: OrderedDict[tuple[int, str], npt.NDArray[Any]] = OrderedDict()

    @classmethod
    def open(cls, folder: Path) -> ActivationStore:
        """Raises LabError naming the file if the store is missing, unfinished, cut short or changed."""
        index = read_index(folder)
        return cls(folder, index, [_must(folder, index, shard) for shard in range(index.shard_count)])

    def __len__(self) -> int:
        return len(self.texts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its folder."""
        return ActivationStore.open, (self.folder,)

    def tokens(self, index: int) -> list[int]:
        """Token ids of a text as they were fed, position 0 included."""
        return self._index.tokens(range(len(self))[index])

    def at(self, where: TapPoint, rows: Sequence[int] | None = None) -> Activations:
        """Every text's states at a tap point, or those of the texts ``rows``, in that order. Raises LabError if not collected."""
        if where.name not in self.facts.tap_points:
            raise LabError(f"{self.folder} has no {where.name}; it has {', '.join(self.facts.tap_points)}")
        chosen = range(len(self)) if rows is None else rows
        return Activations(self, where, np.asarray(chosen, dtype=np.int64))

    def read(self, text: int, where: TapPoint) -> FloatArray:
        """Float32 [lengths[text], width], a copy."""
        start = int(self._start[text])
        return decode(self._mapped(int(self._shard_of[text]), where.name)[start : start + int(self.lengths[text])])

    def _mapped(self, shard: int, name: str) -> npt.NDArray[Any]:
        key = (shard, name)
        if key not in self._maps:
            self._maps[key] = self._shards[shard].array(name)
            if len(self._maps) > _MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        return self._maps[key]


class Activations(Sequence[FloatArray]):
    """Some texts' states at one tap point: a text is float32 [n, width], read from disk when it is asked for.

    Rows begin after the skipped positions; a text's last row is always there. A slice or `take` is another view.
    """

    def __init__(self, store: ActivationStore, where: TapPoint, rows: npt.NDArray[np.int64]) -> None:
        self.store = store
        self.where = where
        self.rows = rows

    @property
    def width(self) -> int:
        return self.store.facts.widths[self.where.name]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Rows of each text, int64 [len(self)]."""
        return self.store.lengths[self.rows]

    def take(self, indices: npt.ArrayLike) -> Activations:
        """The texts at these places of this view, by number or by a mask; numpy's rules."""
        chosen = np.asarray(indices)
        return Activations(self.store, self.where, self.rows[chosen if chosen.size else chosen.astype(np.int64)])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> FloatArray: ...
    @overload
    def __getitem__(self, index: slice) -> Activations: ...
    def __getitem__(self, index: int | slice) -> FloatArray | Activations:
        if isinstance(index, slice):
            return Activations(self.store, self.where, self.rows[index])
        return self.store.read(int(self.rows[index]), self.where)


def _must(folder: Path, index: Index, shard: int) -> TensorFile:
    try:
        return open_shard(folder, index, shard)
    except LabError as error:
        raise LabError(f"{error}; the same `probes collect` command makes it") from None


def _whereabouts(index: Index) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """By text: its shard, and its first row in it."""
    shard_of = np.empty(len(index.order), dtype=np.int64)
    start = np.empty(len(index.order), dtype=np.int64)
    for shard in range(index.shard_count):
        texts = index.texts_of(shard)
        shard_of[texts] = shard
        start[texts] = np.concatenate([[0], np.cumsum(index.lengths[texts])[:-1]])
    return shard_of, start
