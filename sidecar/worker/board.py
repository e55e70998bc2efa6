"""Where the worker leaves copies of its counts: two halves of shared memory, one of them always whole."""

from __future__ import annotations

import json
import math
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_HEAD = 4096
_FACTS_BYTES = 8 << 20  # of JSON, at most: pages that are not used take no memory


_LOOKS = 8


class BoardFullError(Exception):
    """More counts than the board was made for."""


class Board:
    """One writer, one reader, each with a mapping of its own. Nothing waits: a reader sees the newest whole half."""

    def __init__(self, memory: int) -> None:
        self._map = mmap.mmap(memory, 0)
        self._half = (len(self._map) - _HEAD) // 2
        self._head = memoryview(self._map)[:_HEAD].cast("q")  # number of the newest whole half

    @staticmethod
    def create(array_bytes: int) -> int:
        """A descriptor of memory for JSON facts and so many bytes of arrays."""
        memory = os.memfd_create("stethoscope-counts", os.MFD_CLOEXEC)
        os.ftruncate(memory, _HEAD + 2 * mmap.PAGESIZE * (1 + (_FACTS_BYTES + array_bytes) // mmap.PAGESIZE))
        return memory

    def write(self, facts: Mapping[str, Any], arrays: Sequence[Array]) -> None:
        """Raises BoardFullError, and leaves what was there."""
        number = self._head[0] + 1
        shapes = [(one.dtype.descr if one.dtype.names else one.dtype.str, one.shape) for one in arrays]
        text = json.dumps({**facts, "arrays": shapes, "at_s": time.monotonic()}).encode()
        if 16 + len(text) + sum(8 + one.nbytes for one in arrays) > self._half:
            raise BoardFullError
        at = self._start(number)
        self._map[at : at + 8] = len(text).to_bytes(8, "little")
        self._map[at + 8 : at + 8 + len(text)] = text
        at += 8 + len(text)
        for one in arrays:
            at += -at % 8
            np.frombuffer(self._map, one.dtype, one.size, at).reshape(one.shape)[...] = one
            at += one.nbytes
        self._head[0] = number

    def read(self) -> tuple[dict[str, Any], list[Array]]:
        """Copies. Raises LookupError before the first write."""
        for _ in range(_LOOKS):  # a writer that catches up may write both halves while we look at one
            number = self._head[0]
            with suppress(ValueError, KeyError, TypeError):
                made = self._read(number)
                if self._head[0] <= number + 1 and number:
                    return made
        raise LookupError("nothing whole was published")

    def _read(self, number: int) -> tuple[dict[str, Any], list[Array]]:
        at = self._start(number)
        length = int.from_bytes(self._map[at : at + 8], "little")
        facts: dict[str, Any] = json.loads(self._map[at + 8 : at + 8 + length])
        at += 8 + length
        arrays = []
        for kind, shape in facts.pop("arrays"):
            at += -at % 8
            dtype = np.dtype(kind if isinstance(kind, str) else [tuple(field) for field in kind])
            view = np.frombuffer(self._map, dtype, math.prod(shape), at)
            arrays.append(view.reshape(shape).copy())
            at += view.nbytes
        return facts, arrays

    def close(self) -> None:
        self._head.release()
        with suppress(BufferError):
            self._map.close()

    def _start(self, number: int) -> int:
        return _HEAD + (number % 2) * self._half
