"""Hidden states in a file: safetensors in the layout of vLLM's hidden-states connector, checked before anything is believed.

``hidden_states`` [T, layers, D] in F32, F16 or BF16, and ``token_ids`` [T]. Other tensors are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from probes.strictjson import StrictJsonError, parse_strict
from sidecar.types import ElementType

STATES, TOKENS = "hidden_states", "token_ids"
_ELEMENTS = {"F32": ElementType.F32, "F16": ElementType.F16, "BF16": ElementType.BF16}
_INTEGERS = {"I64": 8, "I32": 4, "U64": 8, "U32": 4, "I16": 2, "U16": 2}  # bytes
_EXPONENTS = {ElementType.F32: 0x7F800000, ElementType.F16: 0x7C00, ElementType.BF16: 0x7F80}  # all ones: no number
_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 1 << 20


class StatesFileError(ValueError):
    """The file is not what it should be; the text says how, for people, and quotes nothing of the file but sizes."""


@dataclass(frozen=True, slots=True)
class StatesFile:
    """bits: [T, layers, D], the elements as they lie in the file, of which they are a view; all of them are finite numbers."""

    bits: npt.NDArray[Any]
    dtype: ElementType

    @property
    def tokens(self) -> int:
        return int(self.bits.shape[0])

    @property
    def layers(self) -> int:
        return int(self.bits.shape[1])

    @property
    def width(self) -> int:
        return int(self.bits.shape[2])


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_states(path: Path) -> StatesFile:
    """Raises StatesFileError, also if the file cannot be read."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise StatesFileError(f"it cannot be read: {_why(error)}") from None
    base, header = _header(data)
    states, tokens = _entry(header, STATES), _entry(header, TOKENS)
    _check(states, tokens, len(data) - base)
    dtype = _ELEMENTS[states.dtype]
    unsigned = np.dtype(f"<u{dtype.storage.itemsize}")
    bits = data[base + states.start : base + states.stop].view(unsigned).reshape(states.shape)
    _check_finite(bits, dtype)
    return StatesFile(bits, dtype)


def _why(error: Exception) -> str:
    return (error.strerror or "the system refuses") if isinstance(error, OSError) else "it is empty"


def _header(data: npt.NDArray[np.uint8]) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and what is said of them."""
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    if len(data) < _LENGTH_BYTES or not 2 <= length <= min(_HEADER_LIMIT_BYTES, len(data) - _LENGTH_BYTES):
        raise StatesFileError("it is not a safetensors file")
    base = _LENGTH_BYTES + length
    try:
        header = parse_strict(data[_LENGTH_BYTES:base].tobytes())
    except StrictJsonError as error:
        raise StatesFileError(f"it is not a safetensors file, or a damaged one: {error}") from None
    if not isinstance(header, dict):
        raise StatesFileError("it is not a safetensors file")
    return base, header


def _entry(header: dict[str, Any], name: str) -> _Entry:
    fields = header.get(name)
    if fields is None:
        raise StatesFileError(f"it has no tensor called {name}")
    shape, offsets = (
        (fields.get(key) for key in ("shape", "data_offsets")) if isinstance(fields, dict) else (None, None)
    )
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and isinstance(fields.get("dtype"), str)):
        raise StatesFileError(f"what it says of {name} makes no sense")
    return _Entry(fields["dtype"], tuple(shape), *offsets)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check(states: _Entry, tokens: _Entry, body_bytes: int) -> None:
    if len(states.shape) != 3 or 0 in states.shape:
        raise StatesFileError(
            f"{STATES} has the shape {list(states.shape)}; want [tokens, layers, width], none of them 0"
        )
    if tokens.shape != states.shape[:1]:
        raise StatesFileError(
            f"{TOKENS} has the shape {list(tokens.shape)}; want [{states.shape[0]}], as {STATES} has tokens"
        )
    if states.dtype not in _ELEMENTS:
        raise StatesFileError(f"the elements of {STATES} are none of {', '.join(_ELEMENTS)}")
    if tokens.dtype not in _INTEGERS:
        raise StatesFileError(f"the elements of {TOKENS} are none of {', '.join(_INTEGERS)}")
    sizes = {STATES: _ELEMENTS[states.dtype].storage.itemsize, TOKENS: _INTEGERS[tokens.dtype]}
    for name, entry in ((STATES, states), (TOKENS, tokens)):
        if entry.stop > body_bytes or entry.stop - entry.start != sizes[name] * math.prod(entry.shape):
            raise StatesFileError(
                f"{name} does not have the bytes that its shape says: the file is cut short or damaged"
            )
    if states.start < tokens.stop and tokens.start < states.stop:
        raise StatesFileError(f"{STATES} and {TOKENS} lie over each other")


def _check_finite(bits: npt.NDArray[Any], dtype: ElementType) -> None:
    mask = bits.dtype.type(_EXPONENTS[dtype])
    for token, row in enumerate(bits):  # one by one: the file may be larger than what there is of memory
        if ((row & mask) == mask).any():
            raise StatesFileError(f"{STATES} has an element that is no finite number, at token {token}")
