"""The readings of one tap point in one step, and how they are had from what a tap sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.errors import Rejected, RejectReason
from sidecar.reading.generations import columns_of
from sidecar.reading.plan import Plan, TapPlan
from sidecar.reading.products import to_float32
from sidecar.types import BoolArray, ElementType, FloatArray, IndexArray, TapTensor


@dataclass(frozen=True, slots=True)
class Block:
    """Readings of the rows that were read, in a tap plan's columns. ``None`` stands for all."""

    readings: FloatArray  # [R, K], perhaps in the kernels' memory
    finite: BoolArray | None  # [R], rows without a NaN, an infinity or an overflow; others are not to be used
    there: BoolArray | None = None  # [K], columns that were read
    norms: FloatArray | None = None  # [R], squared norms of the rows, if whoever multiplied has told them

    def of(self, rows: BoolArray | None) -> Block:
        """Those of some of the rows only."""
        if rows is None:
            return self
        finite = None if self.finite is None else self.finite[rows]
        norms = None if self.norms is None else self.norms[rows]
        return Block(self.readings[rows], finite, self.there, norms)

    def usable(self, signals: int, owners: IndexArray | None) -> BoolArray | None:
        """[R, signals], which readings of the first columns' signals may be used. owners: of these columns, None if one each."""
        if self.finite is None and self.there is None:
            return None
        mask = np.ones((len(self.readings), signals), dtype=np.bool_)
        if self.finite is not None:
            mask &= self.finite[:, None]
        if self.there is not None:  # all columns of a signal are there, or none: they are of one artifact
            mask &= self.there[:signals] if owners is None else self.there[np.searchsorted(owners, np.arange(signals))]
        return mask


def sound(readings: FloatArray, values: npt.NDArray[Any], dtype: ElementType, path: str) -> Block:
    """The readings [R, K] of hidden states [R, D]. Raises Rejected for a NaN or an infinity among the states.

    The states are not looked at for it: such a row has no finite reading (see ``products.Product``), so only rows with very
    large readings are. A finite row whose reading overflows is not the sender's fault, but of no use; nor is one that shows in
    its readings that its own squared norm overflows: it would spoil every mean that it went into.
    """
    if math.isfinite(_square(readings)):
        return Block(readings, None)
    finite: BoolArray = np.isfinite(_squares(readings))
    suspects = ~finite
    rows = to_float32(values[suspects], dtype)
    check_finite(rows, ElementType.F32, path)
    finite[suspects] = _all_finite(readings[suspects]) & np.isfinite(_squares(rows))
    return Block(readings, None if finite.all() else finite)


def projected(plan: Plan, tap_plan: TapPlan, tensor: TapTensor, generation: int, path: str) -> Block | None:
    """What a tap multiplied, by the plan in force or an earlier one; None if nothing of it can be used.

    Raises Rejected for a wrong width, a NaN or an infinity.
    """
    check_finite(tensor.values, tensor.dtype, f"{path}.projected")
    rows = to_float32(tensor.values, tensor.dtype)
    if generation == plan.generation:
        _check_width(rows, len(tap_plan.columns), path)
        return _block(rows[:, :-1] + tap_plan.offsets, rows[:, -1])  # the offsets are ours: the tap multiplied, no more
    columns = columns_of(plan, generation, tap_plan)
    if columns is None:
        return None
    _check_width(rows, columns.width, path)
    if not columns.there.any():
        return None
    return _block(rows.take(columns.place, axis=1) + tap_plan.offsets, rows[:, -1], columns.there)


def check_finite(values: npt.NDArray[Any], dtype: ElementType, path: str) -> None:
    """Raises Rejected for a NaN or an infinity."""
    rows = to_float32(values, dtype)
    if not math.isfinite(_square(rows)) and not np.isfinite(rows).all():
        raise Rejected(RejectReason.NON_FINITE, path)


def _check_width(rows: FloatArray, columns: int, path: str) -> None:
    if rows.shape[1] != columns + 1:  # the squared norm comes last
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")


def _block(readings: FloatArray, norms: FloatArray, there: BoolArray | None = None) -> Block:
    finite = None if math.isfinite(_square(readings)) else _all_finite(readings)
    return Block(readings, finite, there, norms)


def _all_finite(values: FloatArray) -> BoolArray:
    """[R], rows without a NaN or an infinity."""
    finite: BoolArray = np.logical_and.reduce(np.isfinite(values), axis=1)
    return finite


def _squares(values: FloatArray) -> FloatArray:
    """[R], of every row; infinite for large rows, NaN or infinite for those with a NaN or an infinity."""
    made: FloatArray = np.einsum("rk,rk->r", values, values)
    return made


def _square(values: FloatArray) -> float:
    """The sum of all squares: NaN or infinite if any value is, and three times as fast as looking at each."""
    flat = values.reshape(-1)
    return float(np.vdot(flat, flat))
