"""Whether a tap multiplies right: some of its rows are multiplied again, here."""

from __future__ import annotations

import numpy as np

from sidecar.errors import Rejected, RejectReason
from sidecar.reading.block import check_finite
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import TapPlan
from sidecar.reading.products import to_float32
from sidecar.types import RowSample, TapTensor

# A tap may multiply in bfloat16, with sums in float32: rounding a direction costs 2^-8 of |row| * |direction| at most, rounding
# the reading another 2^-8 of it (Cauchy-Schwarz). A random reading is |row| * |direction| / sqrt(D), so one column alone may
# escape; all of a plan's columns and the row's norm do not.
AGREEMENT = 2.0**-7
_TINY = 2.0**-24  # the smallest float16


def check_sample(
    kernels: Kernels, tap_plan: TapPlan, tensor: TapTensor, sample: RowSample, path: str
) -> tuple[int, int]:
    """(rows checked, rows whose readings or norm are not the tap's). The tensor is a projection by this very plan.

    Raises Rejected for a wrong width, a NaN or an infinity in the sample. Overwrites the kernels' last readings.
    """
    if sample.values.shape[1] != tap_plan.width:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.sample.columns")
    check_finite(sample.values, sample.dtype, f"{path}.sample")
    claimed = to_float32(tensor.values[sample.rows], tensor.dtype)
    ours = kernels.project(tap_plan, sample.values, sample.dtype) - tap_plan.offsets
    squared = np.square(to_float32(sample.values, sample.dtype), dtype=np.float64).sum(axis=1)  # [R]
    bound = AGREEMENT * np.sqrt(squared)[:, None] * kernels.norms(tap_plan) + _TINY
    right = (np.abs(claimed[:, :-1] - ours) <= bound).all(axis=1)
    right &= np.abs(claimed[:, -1] - squared) <= AGREEMENT * squared + _TINY
    return len(right), int(np.count_nonzero(~right))
