"""What lies in a slot of a shard's ring: 64 bytes of words, the rows behind them. The reply is the readings and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.ring import ALIGN
from sidecar.types import ElementType

HEADER = ALIGN
_TYPES = tuple(ElementType)
_WORDS = Struct("=5q")


@dataclass(frozen=True, slots=True)
class Work:
    """Rows to be multiplied. ``values`` may be a view of the slot."""

    generation: int  # of the plan
    tap: int  # which of the plan's tap points
    dtype: ElementType
    values: npt.NDArray[Any]  # [R, D], in ``dtype.storage``


def size(values: npt.NDArray[Any]) -> int:
    """Bytes of a slot that the rows take."""
    return HEADER + values.nbytes


def put(slot: memoryview, work: Work) -> None:
    """Copy the work into a slot of ``size`` bytes or more."""
    values = work.values
    _WORDS.pack_into(slot, 0, work.generation, work.tap, _TYPES.index(work.dtype), *values.shape)
    np.frombuffer(slot, work.dtype.storage, values.size, HEADER).reshape(values.shape)[...] = values


def get(slot: memoryview) -> Work:
    """The work in a slot; its rows are a view."""
    generation, tap, kind, rows, columns = _WORDS.unpack_from(slot)
    dtype = _TYPES[kind]
    return Work(
        generation, tap, dtype, np.frombuffer(slot, dtype.storage, rows * columns, HEADER).reshape(rows, columns)
    )
