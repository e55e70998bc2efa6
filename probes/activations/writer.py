"""Write an activation store shard by shard, so that a run that is cut off goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from probes.activations.encoding import ITEM_BYTES, check_rows, encode
from probes.activations.facts import StoreFacts
from probes.activations.files import TEMPORARY
from probes.activations.index import (
    FACTS,
    INDEX,
    TEXTS,
    Contents,
    Index,
    read_index,
    read_texts,
    same_contents,
    write_index,
)
from probes.activations.plan import plan_shards
from probes.activations.tensors import TensorFile, open_tensors, write_tensors
from probes.errors import LabError
from sidecar.types import FloatArray

LOCK = ".lock"
_KEPT_FREE_BYTES = 32 << 20


def begin_store(folder: Path, contents: Contents) -> None:
    """Make ``folder`` ready for the shards of ``contents``, or find that it is.

    Raises LabError if it holds anything else, another model's or other texts' activations included, or if the disk has not
    the room that the states will take.
    """
    _make_folder(folder)
    if (folder / FACTS).exists():
        if differing := same_contents(folder, contents):
            raise LabError(
                f"{folder} holds activations of something else (other: {differing}); write to another folder"
            )
        return
    if others := [path.name for path in folder.iterdir() if not _ours(path.name)]:
        raise LabError(f"{folder} holds no activations but other files ({others[0]}); write to another folder")
    lengths = contents.lengths()
    _check_room(folder, int(lengths.sum()) * row_bytes(contents.facts))
    write_index(folder, contents, plan_shards(lengths, row_bytes(contents.facts)))


def row_bytes(facts: StoreFacts) -> int:
    """What one token takes on disk, at all tap points together."""
    return sum(facts.widths.values()) * ITEM_BYTES[facts.state_dtype]


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"states-{shard:05d}.safetensors"


class ShardWriter:
    """Writes the shards of a store that was begun; many processes may, each its own shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Index = read_index(folder)

    def missing(self) -> list[int]:
        """The shards that are not there, or not whole."""
        return [shard for shard in range(self.index.shard_count) if not self._whole(shard)]

    def write(self, shard: int, states: Mapping[str, Sequence[FloatArray]]) -> None:
        """Write one shard; states: by tap point, float32 [length, width] for each of its texts, in ``index.texts_of`` order.

        Raises LabError naming the text if a number is not finite or too large for the store's type, or if the disk is full.
        """
        facts = self.index.facts
        texts = self.index.texts_of(shard)
        for name in facts.tap_points:
            for text, rows in zip(texts, states[name], strict=True):
                self._check(int(text), name, rows)
        arrays = {name: encode(np.concatenate(list(states[name])), facts.state_dtype) for name in facts.tap_points}
        write_tensors(shard_path(self.folder, shard), arrays, {"store": self.index.digest, "shard": str(shard)})

    def _check(self, text: int, name: str, rows: FloatArray) -> None:
        wanted = (int(self.index.lengths[text]), self.index.facts.widths[name])
        if rows.shape != wanted:
            raise LabError(f"{self._place(text)}: {name} gave rows of shape {rows.shape}, not {wanted}")
        try:
            check_rows(rows, self.index.facts.state_dtype, name)
        except LabError as error:
            raise LabError(f"{self._place(text)}: {error}") from None

    def _place(self, text: int) -> str:
        return read_texts(self.folder)[1][text]

    def _whole(self, shard: int) -> bool:
        try:
            open_shard(self.folder, self.index, shard)
        except LabError:
            return False
        return True


def open_shard(folder: Path, index: Index, shard: int) -> TensorFile:
    """Open one shard. Raises LabError naming the file if it is missing, cut short, or of another store."""
    path = shard_path(folder, shard)
    file = open_tensors(path)
    if file.metadata.get("store") != index.digest or file.metadata.get("shard") != str(shard):
        raise LabError(f"{path} belongs to another store")
    rows = int(index.lengths[index.texts_of(shard)].sum())
    for name in index.facts.tap_points:
        if name not in file.entries or file.shape(name) != (rows, index.facts.widths[name]):
            raise LabError(f"{path} does not hold {rows} rows of {name}")
    return file


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{folder} cannot be made: {error.strerror}") from None


def _ours(name: str) -> bool:
    return name in (FACTS, TEXTS, INDEX, LOCK) or name.endswith(TEMPORARY)


def _check_room(folder: Path, wanted: int) -> None:
    free = _free_bytes(folder)
    if wanted + _KEPT_FREE_BYTES > free:
        raise LabError(
            f"{folder}: the states take {wanted / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left; take fewer layers, "
            "fewer texts, or a smaller --dtype"
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
