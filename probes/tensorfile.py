"""A safetensors file from someone else: its header is checked field by field before one number of it is read.

The public reader accepts duplicate keys (the last wins), NaN weights and tensors named like paths; this one refuses
them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import save

from probes.strictjson import strict_object
from probes.tensor_entry import TensorEntry, parse_entry
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import FloatArray

LIMIT_BYTES = 64 << 20
HEADER_LIMIT_BYTES = 64 << 10
_LENGTH_BYTES = 8

# Gets the shapes of all tensors by name, before any number is read; raises ArtifactError if they are not those that it wants.
CheckShapes: TypeAlias = Callable[[Mapping[str, tuple[int, ...]]], None]


def dump_tensors(tensors: Mapping[str, FloatArray]) -> bytes:
    """Serialise float32 tensors; the same numbers always give the same bytes. Nothing is checked: read it back."""
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})


def parse_tensors(data: bytes, names: frozenset[str], check_shapes: CheckShapes) -> dict[str, FloatArray]:
    """Read exactly the float32 tensors of these names, trusting nothing that the file says. The arrays are views of ``data``.

    Raises ArtifactError: NOT_SAFETENSORS, BAD_HEADER, DUPLICATE_KEY, UNKNOWN_TENSOR, BAD_DTYPE, BAD_SHAPE, OVERLAP,
    HOLE, NON_FINITE.
    """
    header_stop = _header_stop(data)
    header = _parse_header(data[_LENGTH_BYTES:header_stop], names)
    entries = {name: _entry(name, header[name]) for name in sorted(names)}
    check_shapes({name: entry.shape for name, entry in entries.items()})
    _check_layout(list(entries.values()), len(data) - header_stop)
    tensors = {name: _array(data, header_stop, entry) for name, entry in entries.items()}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ArtifactError(ArtifactReason.NON_FINITE, "a weight is NaN or infinite")
    return tensors


def _header_stop(data: bytes) -> int:
    if len(data) < _LENGTH_BYTES:
        raise ArtifactError(ArtifactReason.NOT_SAFETENSORS, "the weights file is shorter than a header")
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    # A pickle or a zip read as a header: an absurd length, and no JSON behind it.
    if data[_LENGTH_BYTES : _LENGTH_BYTES + 1] not in (b"{", b""):
        raise ArtifactError(ArtifactReason.NOT_SAFETENSORS, "the weights file is not a safetensors file")
    if length > HEADER_LIMIT_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ArtifactError(ArtifactReason.BAD_HEADER, f"the weights file claims a header of {length} bytes")
    return _LENGTH_BYTES + length


def _parse_header(text: bytes, names: frozenset[str]) -> dict[str, Any]:
    header = strict_object(text, "the weights' header", ArtifactReason.BAD_HEADER)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(ArtifactReason.BAD_HEADER, "the weights' __metadata__ is not a map of texts")
    if set(header) != names:
        raise ArtifactError(
            ArtifactReason.UNKNOWN_TENSOR, f"the weights must be exactly {' and '.join(sorted(names))}"[:400]
        )
    return header


def _entry(name: str, fields: Any) -> TensorEntry:
    entry = parse_entry(fields)
    if entry is None:
        raise ArtifactError(
            ArtifactReason.BAD_HEADER, f"the header's entry of {name} must be a dtype, a shape and two offsets"
        )
    if entry.dtype != "F32":
        raise ArtifactError(ArtifactReason.BAD_DTYPE, f"{name} must be F32")
    return entry


def _check_layout(entries: list[TensorEntry], body_bytes: int) -> None:
    """Tensors lie end to end from the body's first byte to its last, each as long as its shape says."""
    ordered = sorted(entries, key=lambda entry: entry.start)
    edges = [0, *itertools.chain.from_iterable((entry.start, entry.stop) for entry in ordered), body_bytes]
    for before, after in zip(edges[::2], edges[1::2], strict=True):
        if after < before:
            raise ArtifactError(ArtifactReason.OVERLAP, "tensors overlap or lie beyond the end of the file")
        if after > before:
            raise ArtifactError(ArtifactReason.HOLE, "there are bytes that belong to no tensor")
    for entry in entries:
        if entry.stop - entry.start != 4 * math.prod(entry.shape):
            raise ArtifactError(
                ArtifactReason.BAD_SHAPE, f"shape {entry.shape} does not have {entry.stop - entry.start} bytes"
            )


def _array(data: bytes, base: int, entry: TensorEntry) -> FloatArray:
    count = math.prod(entry.shape)
    values = np.frombuffer(data, dtype="<f4", count=count, offset=base + entry.start)
    return values.reshape(entry.shape).astype(np.float32, copy=False)
