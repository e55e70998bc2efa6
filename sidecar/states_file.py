"""Hidden states in a file: safetensors in the layout of vLLM's hidden-states connector, checked before anything is believed.

``hidden_states`` [T, layers, D] in F32, F16 or BF16, and ``token_ids`` [T]. Other tensors are left alone. What we write ourselves
has -1 for a token that nobody told us.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.strictjson import StrictJsonError, parse_strict
from probes.tensor_entry import TensorEntry, parse_entry
from sidecar.types import ElementType

STATES, TOKENS = "hidden_states", "token_ids"
_ELEMENTS = {"F32": ElementType.F32, "F16": ElementType.F16, "BF16": ElementType.BF16}
_INTEGERS = {"I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4", "I16": "<i2", "U16": "<u2"}
_EXPONENTS = {ElementType.F32: 0x7F800000, ElementType.F16: 0x7C00, ElementType.BF16: 0x7F80}  # all ones: no number
_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 1 << 20


class StatesFileError(ValueError):
    """The file is not what it should be; the text says how, for people, and quotes nothing of the file but sizes."""


@dataclass(frozen=True, slots=True)
class StatesFile:
    """bits: [T, layers, D], the elements as they lie in the file, of which they are a view; all of them are finite numbers.

    token_ids: integers [T].
    """

    bits: npt.NDArray[Any]
    dtype: ElementType
    token_ids: npt.NDArray[Any]

    @property
    def tokens(self) -> int:
        return int(self.bits.shape[0])

    @property
    def layers(self) -> int:
        return int(self.bits.shape[1])

    @property
    def width(self) -> int:
        return int(self.bits.shape[2])


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
    return StatesFile(bits, dtype, data[base + tokens.start : base + tokens.stop].view(_INTEGERS[tokens.dtype]))


def write_states(path: Path, bits: npt.NDArray[Any], dtype: ElementType, token_ids: Sequence[int]) -> None:
    """Write what `read_states` reads; the file appears whole or not at all. Raises OSError.

    bits: [T, layers, D] as they are stored, little-endian; token_ids: T of them, -1 for one that is not known.
    """
    ids = np.asarray(token_ids, "<i8")
    (name,) = (name for name, element in _ELEMENTS.items() if element is dtype)
    at = len(ids) * ids.itemsize
    header = {
        TOKENS: {"dtype": "I64", "shape": list(ids.shape), "data_offsets": [0, at]},
        STATES: {"dtype": name, "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that every element lies at a multiple of its size
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            file.write(ids.data)
            file.write(np.ascontiguousarray(bits).data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


def _entry(header: dict[str, Any], name: str) -> TensorEntry:
    if name not in header:
        raise StatesFileError(f"it has no tensor called {name}")
    entry = parse_entry(header[name])
    if entry is None:
        raise StatesFileError(f"what it says of {name} makes no sense")
    return entry


def _check(states: TensorEntry, tokens: TensorEntry, body_bytes: int) -> None:
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
    sizes = {STATES: _ELEMENTS[states.dtype].storage.itemsize, TOKENS: np.dtype(_INTEGERS[tokens.dtype]).itemsize}
    for name, entry in ((STATES, states), (TOKENS, tokens)):
        if entry.stop > body_bytes or entry.stop - entry.start != sizes[name] * math.prod(entry.shape):
            raise StatesFileError(
                f"{name} does not have the bytes that its shape says: the file is cut short or damaged"
            )
    if states.start < tokens.stop and tokens.start < states.stop:
        raise StatesFileError(f"{STATES} and {TOKENS} lie over each other")


def _check_finite(bits: npt.NDArray[Any], dtype: ElementType) -> None:
    token = first_not_finite(bits, dtype)
    if token is not None:
        raise StatesFileError(f"{STATES} has an element that is no finite number, at token {token}")


def first_not_finite(bits: npt.NDArray[Any], dtype: ElementType) -> int | None:
    """Which token, of states as unsigned integers of their element's size, has NaN or an infinity; None if none has."""
    mask = bits.dtype.type(_EXPONENTS[dtype])
    for token, row in enumerate(bits):  # one by one: the file may be larger than what there is of memory
        if ((row & mask) == mask).any():
            return token
    return None
