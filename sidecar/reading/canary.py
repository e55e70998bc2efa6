"""The fingerprint of hidden states: 64 numbers that move when the states do, whatever moved them."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from sidecar.types import FloatArray, TapPoint

SIZE = 64


def fingerprint(where: TapPoint, rows: FloatArray) -> FloatArray:
    """Rows [R, D] to [R, 64]: a random projection that keeps lengths on average, the same for the same tap point and D.

    Squared distances are kept to a factor of 1 -+ sqrt(2 / 64), one standard deviation (Johnson and Lindenstrauss).
    """
    made: FloatArray = rows @ _projection(where.name, rows.shape[1])
    return made


@lru_cache(maxsize=64)
def _projection(where: str, width: int) -> FloatArray:
    """[D, 64]. From the bytes of a hash, so that it is the same wherever and with whatever version of numpy it is made."""
    signs = hashlib.shake_256(f"{where}/{width}".encode()).digest(width * SIZE // 8)
    bits = np.unpackbits(np.frombuffer(signs, np.uint8)).reshape(width, SIZE)
    made: FloatArray = ((2.0 * bits - 1.0) / np.sqrt(SIZE)).astype(np.float32)
    return made
