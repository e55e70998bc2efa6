"""Safetensors files of any size: written array by array without a copy of the whole, read by memory map.

The public reader for numpy knows no bfloat16 and reads a file that was cut short only to fail somewhere inside it; this one
compares the file's size with its header first, and gives bfloat16 as the uint16 that numpy holds it in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.activations.files import whole_file
from probes.errors import LabError

_STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "int32": "I32"}
_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the file's first byte


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A whole file's header. Arrays are mapped when they are asked for, read-only."""

    path: Path
    metadata: Mapping[str, str]
    entries: Mapping[str, _Entry]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def array(self, name: str) -> npt.NDArray[Any]:
        entry = self.entries[name]
        try:
            return np.memmap(self.path, _STORAGE[entry.dtype], "r", entry.offset, entry.shape)
        except (OSError, ValueError) as error:
            raise LabError(f"{self.path} cannot be read: {error}") from None


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write C-contiguous, non-empty arrays; uint16 is taken for bfloat16. The same arrays give the same bytes.

    Raises LabError naming the file if the disk refuses.
    """
    ordered = sorted(arrays.items(), key=lambda pair: (-pair[1].itemsize, pair[0]))  # every array stays aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in ordered:
        stop = offset + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for _, array in ordered:
            file.write(array.data.cast("B"))


def open_tensors(path: Path) -> TensorFile:
    """Read the header and compare the file's size with it. Raises LabError naming the file if it is missing or not whole."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            text = file.read(min(length, _HEADER_LIMIT_BYTES))
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise LabError(f"{path} is missing") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if len(text) != length:
            raise ValueError("short")
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(fields, _LENGTH_BYTES + length) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LabError(f"{path} is cut short or damaged: its header cannot be read") from None
    _check_size(path, entries, _LENGTH_BYTES + length, size)
    return TensorFile(path, metadata, entries)


def _entry(fields: Mapping[str, Any], base: int) -> _Entry:
    start, stop = fields["data_offsets"]
    entry = _Entry(fields["dtype"], tuple(fields["shape"]), base + start)
    if stop - start != _bytes(entry):
        raise ValueError("a shape that is not what the offsets say")
    return entry


def _bytes(entry: _Entry) -> int:
    return math.prod(entry.shape) * np.dtype(_STORAGE[entry.dtype]).itemsize


def _check_size(path: Path, entries: Mapping[str, _Entry], base: int, size: int) -> None:
    wanted = max((entry.offset + _bytes(entry) for entry in entries.values()), default=base)
    if size != wanted:
        raise LabError(f"{path} is cut short or damaged: it has {size} bytes of {wanted}")
