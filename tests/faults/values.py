"""Rows as bytes, in every element type, with one element replaced by given bits."""

from __future__ import annotations

import numpy as np

from protos.stethoscope.v1 import ingest_pb2
from sidecar.types import TapPoint
from tests.builders import TAP

ELEMENTS = {"f32": "<u4", "f16": "<u2", "bf16": "<u2"}  # how the bits are held
# Infinities, and NaNs of all kinds: quiet, signalling, negative, with the smallest payload.
NON_FINITE = {
    "f32": (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFC00000, 0xFFFFFFFF),
    "f16": (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE00, 0xFFFF),
    "bf16": (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC0, 0xFFFF),
}


def bits(rows: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rows as the bits of ``dtype``; bfloat16 by cutting."""
    if dtype == "bf16":
        return (rows.astype("<f4").view("<u4") >> 16).astype("<u2")
    return rows.astype({"f32": "<f4", "f16": "<f2"}[dtype]).view(ELEMENTS[dtype])


def as_tensor(
    elements: np.ndarray, dtype: str, tap: TapPoint = TAP, *, projected: bool = False
) -> ingest_pb2.TapTensor:
    rows, columns = elements.shape
    payload = {"projected" if projected else "raw": elements.tobytes()}
    return ingest_pb2.TapTensor(
        tap_point=ingest_pb2.TapPoint(layer=tap.layer, site=ingest_pb2.SITE_RESID_POST),
        dtype=ingest_pb2.ElementType.Value(f"ELEMENT_TYPE_{dtype.upper()}"),
        rows=rows,
        columns=columns,
        **payload,
    )
