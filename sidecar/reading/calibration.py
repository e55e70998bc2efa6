"""Which product is the fastest here, for which size of step: measured, since CPUs and libraries differ up to 55 times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.reading.products import Product, to_float32
from sidecar.types import ElementType, FloatArray

BUCKETS = (1, 8, 64, 512)  # rows of a step: a choice holds from one to the next
SAME = 0.5  # doublings of a size: one probe more is no reason to measure again
_ROUNDS = 40  # as far as time allows: the best of a few is the luck of a busy moment
_HOPELESS = 3.0  # times slower than the best in the first round: not tried again
# Of a typical reading of random rows, |row| * |direction| / sqrt(D). Measured: 2^-17.5 for float32, 2^-15 for the split product,
# massive activations included; 2^-6 if directions are rounded to bfloat16.
_TYPICAL_BOUND = 2.0**-11
_CHUNK = (
    1 << 18
)  # elements: 1 MiB of float32 stays in a second-level cache, so 512 rows take 0.7 of their time in one piece


@dataclass(frozen=True, slots=True)
class Shape:
    """Products of one shape take the same time: rows of ``width`` elements of ``dtype`` times ``columns`` directions."""

    width: int
    columns: int
    dtype: ElementType

    def near(self, other: Shape) -> bool:
        """Whether what is fastest for one is fastest for the other."""
        return self.dtype is other.dtype and self.distance(other) <= SAME

    def distance(self, other: Shape) -> float:
        """How far apart two sizes are, in doublings."""
        return abs(math.log2(self.width / other.width)) + abs(math.log2(self.columns / other.columns))


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest product and its time for a step of the bucket's rows."""

    product: str
    seconds: float


def chunk_rows(width: int) -> int:
    """So many rows are multiplied at a time."""
    return max(8, _CHUNK // width)


def narrow(rows: FloatArray, dtype: ElementType) -> npt.NDArray[Any]:
    """float32 rows as wire elements; for bfloat16, what it does not hold is cut off."""
    if dtype is ElementType.BF16:
        return (rows.view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(dtype.storage)


def fault_of(product: Product, shape: Shape) -> str:
    """Why the product must not be used on this machine; empty if its arithmetic is what it promises."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(shape.width, 8)).astype(np.float32)
    directions[::2, 0] = 0.0
    values = narrow(rng.normal(size=(16, shape.width)).astype(np.float32), shape.dtype)
    error = float(_errors(product, shape.dtype, values, directions).max())
    if not error <= _TYPICAL_BOUND:
        return f"its error is {error:.1e} of a reading, more than {_TYPICAL_BOUND:.1e}"
    values[:, 0] = narrow(np.array([np.nan], dtype=np.float32), shape.dtype)  # where a direction is 0
    out = _multiply(product, shape.dtype, values, directions)
    return "it loses a NaN" if np.isfinite(out).any() else ""


def _multiply(product: Product, dtype: ElementType, values: npt.NDArray[Any], directions: FloatArray) -> FloatArray:
    out = np.empty((len(values), directions.shape[1]), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        product.multiply(values, dtype, product.prepare(directions), out)
    return out


def _errors(
    product: Product, dtype: ElementType, values: npt.NDArray[Any], directions: FloatArray
) -> npt.NDArray[np.float64]:
    """[T, K], as a share of a typical reading."""
    rows, wide = to_float32(values, dtype).astype(np.float64), directions.astype(np.float64)
    typical = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(wide, axis=0) / np.sqrt(rows.shape[1])
    errors: npt.NDArray[np.float64] = np.abs(_multiply(product, dtype, values, directions) - rows @ wide) / typical
    return errors


def measure(products: Mapping[str, Product], shape: Shape, until_s: float) -> dict[int, Choice]:
    """The fastest product for each bucket whose turn came before ``until_s`` (of time.perf_counter)."""
    rng = np.random.default_rng(0)
    most = chunk_rows(shape.width)
    values = narrow(rng.random((min(most, BUCKETS[-1]), shape.width), dtype=np.float32), shape.dtype)
    directions = rng.random((shape.width, shape.columns), dtype=np.float32)
    out = np.empty((len(values), shape.columns), dtype=np.float32)
    prepared = {name: product.prepare(directions) for name, product in products.items()}
    fastest: dict[int, Choice] = {}
    steps = sorted({min(bucket, most) for bucket in BUCKETS}, key=lambda rows: abs(rows - 64))  # the common step first
    for turn, rows in enumerate(steps):

        def multiply(name: str, rows: int = rows) -> None:
            products[name].multiply(values[:rows], shape.dtype, prepared[name], out[:rows])

        left_s = until_s - time.perf_counter()
        if left_s > 0:
            fastest[rows] = _race(multiply, list(products), until_s - left_s * (1 - 1 / (len(steps) - turn)))
    measured = {bucket: fastest.get(min(bucket, most)) for bucket in BUCKETS}
    return {
        bucket: Choice(one.product, one.seconds * bucket / min(bucket, most))
        for bucket, one in measured.items()
        if one is not None
    }


def _race(multiply: Callable[[str], None], names: list[str], until_s: float) -> Choice:
    """The best of a few rounds each, in turns, so that a busy moment hits all alike."""
    best = dict.fromkeys(names, float("inf"))
    for _ in range(1 + _ROUNDS):  # the first round also touches memory and wakes libraries
        limit = _HOPELESS * min(best.values())
        for name in names:
            if best[name] <= limit:
                start = time.perf_counter()
                multiply(name)
                best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() > until_s:
            break
    return min((Choice(name, seconds) for name, seconds in best.items()), key=lambda choice: choice.seconds)
