"""States of many texts at one layer, and their place on disk: large, cheap to make again, never in the repository."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.smollm2 import cache_folder
from sidecar.types import FloatArray


@dataclass(frozen=True, slots=True)
class States:
    """States of many texts at one layer. Texts that begin alike share the rows of their beginning.

    prefix: float32 [P, D], the rows that every text has first. tails: float32 [N, D], the other rows of all texts, end to
    end. Text i is prefix followed by ``tails[starts[i]:starts[i + 1]]``; its first row is position 0.
    """

    prefix: FloatArray
    tails: FloatArray
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def tail(self, index: int) -> FloatArray:
        return self.tails[self.starts[index] : self.starts[index + 1]]

    def text(self, index: int) -> FloatArray:
        """Every row of one text, from position 0, float32 [n, D]."""
        return np.concatenate([self.prefix, self.tail(index)])


def kept_states(
    weights_digest: str, ids: Sequence[Sequence[int]], layers: Sequence[int], compute: Callable[[], dict[int, States]]
) -> dict[int, States]:
    """Load the states of these texts at these layers, computing and keeping them first if they are not on disk."""
    folder = _folder() / _digest(weights_digest, ids, layers)
    if not folder.is_dir():
        _write(folder, compute())
    starts = tuple(np.load(folder / "starts.npy").tolist())
    return {layer: _load(folder, layer, starts) for layer in layers}


def forget_states() -> None:
    """Delete all that `kept_states` keeps."""
    shutil.rmtree(_folder(), ignore_errors=True)


def _folder() -> Path:
    return cache_folder() / "states"


def _digest(weights_digest: str, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> str:
    seen = hashlib.sha256(f"{weights_digest} {sorted(layers)}".encode())
    for text in ids:
        seen.update(np.asarray([len(text), *text], dtype="<i8").tobytes())
    return seen.hexdigest()


def _load(folder: Path, layer: int, starts: tuple[int, ...]) -> States:
    return States(np.load(folder / f"prefix{layer}.npy"), np.load(folder / f"tails{layer}.npy", mmap_mode="r"), starts)


def _write(folder: Path, states: dict[int, States]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".states.", dir=folder.parent))
    try:
        for layer, of_layer in states.items():
            np.save(work / f"prefix{layer}.npy", of_layer.prefix)
            np.save(work / f"tails{layer}.npy", of_layer.tails)
            np.save(work / "starts.npy", np.asarray(of_layer.starts))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
