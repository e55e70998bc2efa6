"""The wire format of protocol buffers, as far as writing metrics needs it."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

_DOUBLE = struct.Struct("<d")
_BYTE = 1 << 7
_ONE = tuple(bytes((n,)) for n in range(_BYTE))  # most numbers of a page
_VARINT, _FIXED, _DELIMITED = 0, 1, 2


def varint(number: int) -> bytes:
    """Write a number from 0 to 2**64 - 1, seven bits a byte, the lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    if number < _BYTE:
        return _ONE[number]
    if number < _BYTE * _BYTE:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80)) + varint(number >> 14)


def delimited(message: bytes) -> bytes:
    """Put its length in front of a message."""
    return varint(len(message)) + message


def content_tag(field: int) -> bytes:
    """What stands in front of a field with a length: a string, a message or packed numbers."""
    return varint(field << 3 | _DELIMITED)


def count_tag(field: int) -> bytes:
    """What stands in front of a field with a number of at least 0."""
    return varint(field << 3 | _VARINT)


def content_field(field: int, content: bytes) -> bytes:
    return content_tag(field) + delimited(content)


def text_field(field: int, text: str) -> bytes:
    return content_field(field, text.encode())


def count_field(field: int, number: int) -> bytes:
    return count_tag(field) + varint(number)


def double_field(field: int, number: float) -> bytes:
    return varint(field << 3 | _FIXED) + _DOUBLE.pack(number)


def signed(number: int) -> bytes:
    """Write a number of either sign ("zigzag": 0, -1, 1, -2, ...).

    >>> signed(-2).hex()
    '03'
    """
    return varint(number * 2 if number >= 0 else -number * 2 - 1)


def signed_list(numbers: npt.NDArray[np.int64]) -> bytes:
    """The same for many of them, end to end."""
    zigzag = (numbers << 1 ^ numbers >> 63).view(np.uint64)
    return b"".join(map(varint, zigzag.tolist()))
