"""Ways to multiply rows by directions in float32, found in one dict; torch's stand in a module that is imported late."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sidecar.types import ElementType, FloatArray


class Product(Protocol):
    """Multiplies rows as they come off the wire. Owns scratch memory: one thread.

    What it computes is of float32's class: |reading - exact| <= BOUND * |row| * |direction| (Euclidean norms), also for rows
    that overflow nothing but are large. A NaN or an infinity anywhere in a row makes every reading of that row NaN or
    infinite, whatever zeros the directions hold.
    """

    def prepare(self, directions: FloatArray) -> Any:
        """What ``multiply`` wants for directions [D, K]; made once for a plan, kept as long as it."""

    def takes(self, dtype: ElementType) -> bool:
        """Whether rows of this type lose nothing on their way into the product."""

    def multiply(self, values: npt.NDArray[Any], dtype: ElementType, prepared: Any, out: FloatArray) -> None:
        """Fill ``out``, float32 [T, K], contiguous. The values [T, D] are contiguous and perhaps read-only."""


# Of float32's class. In theory: 2^-17 for a direction that is split, and D/8 roundings of 2^-24 in a sum of eight lanes, which is
# 2^-14 at D = 8192. Measured at D = 64 to 8192, massive activations included: 2^-22 for float32, 2^-19 for the split product.
BOUND = 2.0**-14


def to_float32(values: npt.NDArray[Any], dtype: ElementType) -> FloatArray:
    """Widen wire elements to float32, exactly. float32 input is returned as it is, without a copy.

    >>> to_float32(np.array([[0x3F80, 0xC000]], dtype="<u2"), ElementType.BF16)
    array([[ 1., -2.]], dtype=float32)
    """
    if dtype is ElementType.F32:
        return values.astype(np.float32, copy=False)
    return widen(values, dtype, np.empty(values.shape, dtype=np.float32))


def widen(values: npt.NDArray[Any], dtype: ElementType, out: FloatArray) -> FloatArray:
    """The same into ``out``, which is returned."""
    if dtype is ElementType.BF16:  # bfloat16 is the upper half of a float32
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    else:
        np.copyto(out, values)
    return out


def aligned(directions: FloatArray) -> FloatArray:
    """The directions as products read them best: libraries copy an array that is not aligned, every time.

    Arrays that came in a message or a file may begin anywhere.
    """
    return np.require(directions, np.float32, ["C_CONTIGUOUS", "ALIGNED"])


class NumpyFloat32:
    """Widen into scratch memory, then sgemm. Always there."""

    def __init__(self) -> None:
        self._wide: FloatArray = np.empty(0, dtype=np.float32)

    def prepare(self, directions: FloatArray) -> FloatArray:
        return aligned(directions)

    def takes(self, dtype: ElementType) -> bool:
        del dtype
        return True

    def multiply(self, values: npt.NDArray[Any], dtype: ElementType, prepared: FloatArray, out: FloatArray) -> None:
        rows = values
        if dtype is not ElementType.F32:
            if self._wide.size < values.size:
                self._wide = np.empty(values.size, dtype=np.float32)
            rows = widen(values, dtype, self._wide[: values.size].reshape(values.shape))
        np.matmul(rows, prepared, out=out)


def available() -> tuple[dict[str, Product], dict[str, str]]:
    """Every product that can run here, by name, and why others cannot. Loads torch if it is installed (a second or two)."""
    products: dict[str, Product] = {"numpy_f32": NumpyFloat32()}
    try:
        from sidecar.reading.torch_products import torch_products
    except ImportError:
        return products, {"torch_f32": "torch is not installed", "torch_bf16x2": "torch is not installed"}
    found, missing = torch_products()
    return products | found, missing
