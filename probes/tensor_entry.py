"""What the header of a safetensors file, which somebody else wrote, says of one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """start, stop: of its bytes, behind the header. Whether they fit its shape, its dtype or the file is not known yet."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_entry(fields: Any) -> TensorEntry | None:
    """None unless it is a dtype, a shape and two offsets, and nothing else; sizes are whole numbers from 0 on.

    >>> parse_entry({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]})
    TensorEntry(dtype='F32', shape=(2, 3), start=0, stop=24)
    >>> parse_entry({"dtype": "F32", "shape": [True, 3], "data_offsets": [0, 12]}) is None
    True
    """
    if not isinstance(fields, dict) or sorted(fields) != ["data_offsets", "dtype", "shape"]:
        return None
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        return None
    return TensorEntry(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
