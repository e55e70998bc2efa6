"""The weights file of an artifact: safetensors with exactly two tensors, checked field by field before it is read.

The public reader accepts duplicate keys (the last wins), NaN weights and tensors named like paths; this one refuses
them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from probes.strictjson import strict_object
from probes.tensor_entry import TensorEntry, parse_entry
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import FloatArray

LIMIT_BYTES = 64 << 20
HEADER_LIMIT_BYTES = 64 << 10
_NAMES = ("directions", "offsets")
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """directions: float32 [D, K], offsets: float32 [K]; finite, read-only, no column all zero."""

    directions: FloatArray
    offsets: FloatArray


def dump_weights(directions: FloatArray, offsets: FloatArray) -> bytes:
    """Serialise weights; the same numbers always give the same bytes. Raises ArtifactError as `parse_weights` does."""
    data = save({"directions": np.ascontiguousarray(directions), "offsets": np.ascontiguousarray(offsets)})
    parse_weights(data)
    return data


def parse_weights(data: bytes) -> Weights:
    """Read the two tensors out of a safetensors file, trusting nothing that it says.

    Raises ArtifactError: NOT_SAFETENSORS, BAD_HEADER, DUPLICATE_KEY, UNKNOWN_TENSOR, BAD_DTYPE, BAD_SHAPE, OVERLAP,
    HOLE, NON_FINITE, BAD_WEIGHTS. The arrays are views of ``data``.
    """
    header_stop = _header_stop(data)
    header = _parse_header(data[_LENGTH_BYTES:header_stop])
    entries = {name: _entry(name, header[name]) for name in _NAMES}
    _check_layout(list(entries.values()), len(data) - header_stop)
    directions, offsets = (_array(data, header_stop, entries[name]) for name in _NAMES)
    _check_numbers(directions, offsets)
    return Weights(directions, offsets)


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


def _parse_header(text: bytes) -> dict[str, Any]:
    header = strict_object(text, "the weights' header", ArtifactReason.BAD_HEADER)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(ArtifactReason.BAD_HEADER, "the weights' __metadata__ is not a map of texts")
    if sorted(header) != sorted(_NAMES):
        raise ArtifactError(ArtifactReason.UNKNOWN_TENSOR, f"the weights must be exactly {' and '.join(_NAMES)}")
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
    shapes = [len(entry.shape) for entry in entries]
    directions, offsets = (entry.shape for entry in entries)
    if shapes != [2, 1] or directions[1] != offsets[0] or 0 in directions:
        raise ArtifactError(
            ArtifactReason.BAD_SHAPE, f"want directions [D, K] and offsets [K], got {directions}, {offsets}"
        )
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


def _check_numbers(directions: FloatArray, offsets: FloatArray) -> None:
    if not (np.isfinite(directions).all() and np.isfinite(offsets).all()):
        raise ArtifactError(ArtifactReason.NON_FINITE, "a weight is NaN or infinite")
    if not directions.any(axis=0).all():
        raise ArtifactError(ArtifactReason.BAD_WEIGHTS, "a direction is all zeros and can read nothing")
