"""The weights file of a probe: safetensors with exactly two tensors, directions and offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from probes.tensorfile import LIMIT_BYTES, dump_tensors, parse_tensors
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import FloatArray

__all__ = ["LIMIT_BYTES", "Weights", "dump_weights", "parse_weights"]
_NAMES = frozenset({"directions", "offsets"})


@dataclass(frozen=True, slots=True)
class Weights:
    """directions: float32 [D, K], offsets: float32 [K]; finite, read-only, no column all zero."""

    directions: FloatArray
    offsets: FloatArray


def dump_weights(directions: FloatArray, offsets: FloatArray) -> bytes:
    """Serialise weights; the same numbers always give the same bytes. Raises ArtifactError as `parse_weights` does."""
    data = dump_tensors({"directions": directions, "offsets": offsets})
    parse_weights(data)
    return data


def parse_weights(data: bytes) -> Weights:
    """Read the two tensors, trusting nothing that the file says. The arrays are views of ``data``.

    Raises ArtifactError as `probes.tensorfile.parse_tensors` does, and BAD_WEIGHTS.
    """
    tensors = parse_tensors(data, _NAMES, _check_shapes)
    if not tensors["directions"].any(axis=0).all():
        raise ArtifactError(ArtifactReason.BAD_WEIGHTS, "a direction is all zeros and can read nothing")
    return Weights(tensors["directions"], tensors["offsets"])


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    directions, offsets = shapes["directions"], shapes["offsets"]
    if (len(directions), len(offsets)) != (2, 1) or directions[1] != offsets[0] or 0 in directions:
        raise ArtifactError(
            ArtifactReason.BAD_SHAPE, f"want directions [D, K] and offsets [K], got {directions}, {offsets}"
        )
