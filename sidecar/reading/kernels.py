"""The one product of the read path: rows times directions, in float32, with the squared norm beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.types import ElementType, FloatArray


def to_float32(values: npt.NDArray[Any], dtype: ElementType) -> FloatArray:
    """Widen wire elements to float32, exactly. float32 input is returned as it is, without a copy.

    >>> to_float32(np.array([[0x3F80, 0xC000]], dtype="<u2"), ElementType.BF16)
    array([[ 1., -2.]], dtype=float32)
    """
    if dtype is ElementType.BF16:  # bfloat16 is the upper half of a float32
        wide = values.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)


def project(rows: FloatArray, directions: FloatArray, offsets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Multiply and measure. rows [T, D], directions [D, K], offsets [K] -> readings [T, K], squared norms [T].

    Finite rows may overflow; the caller checks what comes back. O(T*D*K).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        readings = rows @ directions
        readings += offsets
        squared = np.einsum("td,td->t", rows, rows)
    return readings, squared
