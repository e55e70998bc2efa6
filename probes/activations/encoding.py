"""Rows of float32 as they are kept on disk, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from probes.activations.facts import StateDtype
from probes.errors import LabError
from sidecar.types import FloatArray

ITEM_BYTES: dict[StateDtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# bfloat16: the largest float32 that does not round up to infinity.
_LARGEST: dict[StateDtype, float] = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


def encode(rows: FloatArray, dtype: StateDtype) -> npt.NDArray[Any]:
    """Float32 rows in the store's type; bfloat16, which numpy lacks, as uint16, rounded to the nearest, ties to even.

    >>> decode(encode(np.array([1.0, -2.71875], np.float32), "bfloat16")).tolist()
    [1.0, -2.71875]
    """
    if dtype == "float32":
        return np.ascontiguousarray(rows, "<f4")
    if dtype == "float16":
        return np.ascontiguousarray(rows, "<f2")
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def decode(kept: npt.NDArray[Any]) -> FloatArray:
    """A float32 copy of rows as `encode` made them."""
    if kept.dtype == np.uint16:
        return (kept.astype("<u4") << np.uint32(16)).view("<f4").astype(np.float32, copy=False)
    return np.array(kept, dtype=np.float32)


def check_rows(rows: FloatArray, dtype: StateDtype, place: str) -> None:
    """Refuse rows that are not finite or that ``dtype`` cannot hold: LabError, beginning with ``place``."""
    peak = float(max(rows.max(), -rows.min()))  # NaN if any is
    if not np.isfinite(rows.min()) or not np.isfinite(peak):
        raise LabError(f"{place}: an activation is NaN or infinite")
    if peak > _LARGEST[dtype]:
        raise LabError(
            f"{place}: activations reach {peak:.3g}, more than {dtype} holds; keep them with "
            f"--dtype {'float32' if dtype == 'bfloat16' else 'bfloat16 or float32'}"
        )
