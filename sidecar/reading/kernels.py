"""The one product of the read path, by whatever multiplies fastest on this machine."""

from __future__ import annotations

import importlib
import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.reading.calibration import BUCKETS, SAME, Choice, Shape, chunk_rows, fault_of, measure
from sidecar.reading.plan import Plan, TapPlan
from sidecar.reading.products import Product, available
from sidecar.snapshot import KernelChoice
from sidecar.types import ElementType, FloatArray, ModelIdentity, TapPoint

_PREFERRED = ("torch_f32", "numpy_f32")  # where nothing was measured
_UNMEASURED = 0.0


@dataclass(frozen=True, slots=True)
class _Bound:
    """A tap point's plan with what the products made of its directions."""

    plan: TapPlan
    choices: tuple[Choice, ...]  # by bucket
    prepared: Mapping[str, Any]  # by product
    norms: npt.NDArray[np.float64]  # [K], of the directions


class Kernels:
    """Multiplies rows with a plan's directions. Owned by one thread.

    budget_s: how long the calibration of a plan may take; what there was no time for borrows from its nearest neighbour.
    products: use only these, by name; all that are there if None.
    """

    def __init__(self, budget_s: float = 0.2, products: Iterable[str] | None = None) -> None:
        self._budget_s = budget_s
        self._wanted = None if products is None else frozenset(products)
        self._loading: Thread | None = None
        self._products: dict[str, Product] = {}
        self._choices: dict[Shape, dict[int, Choice]] = {}
        self._bound: dict[TapPoint, _Bound] = {}
        self._out: FloatArray = np.empty(0, dtype=np.float32)
        self.refused: dict[str, str] = {}  # products that are not used, and why

    def start(self) -> None:
        """Begin to load torch, which takes a second or two, on a thread that ends with that; ``bind`` waits for it."""
        self._loading = Thread(target=_load, name="load-torch", daemon=True)
        self._loading.start()

    def _load_products(self) -> None:
        if self._loading is not None:
            self._loading.join()
            self._loading = None
        if not self._products:
            products, self.refused = available()
            wanted = self._wanted
            self._products = {name: one for name, one in products.items() if wanted is None or name in wanted}

    def bind(self, plan: Plan) -> None:
        """Make ready for a plan: measure what is not known yet, prepare its directions. A reload of known shapes costs no time."""
        self._load_products()
        dtype = wire_type(plan.model)
        shapes = {where: Shape(tap.width, len(tap.columns), dtype) for where, tap in plan.taps.items()}
        self._calibrate(self._unknown(shapes.values()))
        self._bound = {where: self._bind(plan.taps[where], shape) for where, shape in shapes.items()}

    def bind_like(self, plan: Plan, choices: Iterable[KernelChoice]) -> None:
        """Make ready with what another process of this machine has chosen: nothing is measured, and both read the same bits."""
        self._load_products()
        dtype = wire_type(plan.model)
        self._choices = {}
        for one in choices:
            tap = plan.taps[one.tap_point]
            shape = Shape(tap.width, len(tap.columns), dtype)
            self._choices.setdefault(shape, {})[one.rows] = Choice(one.kernel, one.seconds)
        self.bind(plan)

    def _unknown(self, shapes: Iterable[Shape]) -> list[Shape]:
        unknown: list[Shape] = []
        for shape in shapes:
            if not any(shape.near(other) for other in (*self._choices, *unknown)):
                unknown.append(shape)
        return unknown

    def _calibrate(self, shapes: list[Shape]) -> None:
        begun = time.perf_counter()
        for turn, shape in enumerate(shapes, start=1):
            eligible = {name: one for name, one in self._products.items() if one.takes(shape.dtype)}
            for name, one in list(eligible.items()):
                if fault := fault_of(one, shape):
                    self.refused[name] = fault
                    del eligible[name]
                    del self._products[name]
            if not eligible:  # not even numpy's own product can be trusted
                raise ArithmeticError(f"no product is exact enough on this machine: {self.refused}")
            self._choices[shape] = measure(eligible, shape, begun + self._budget_s * turn / len(shapes))

    def _bind(self, plan: TapPlan, shape: Shape) -> _Bound:
        choices = tuple(self._choice(shape, bucket) for bucket in BUCKETS)
        names = {choice.product for choice in choices} | {self._default()}
        prepared = {name: self._products[name].prepare(plan.directions) for name in names}
        return _Bound(plan, choices, prepared, np.linalg.norm(plan.directions.astype(np.float64), axis=0))

    def _choice(self, shape: Shape, bucket: int) -> Choice:
        """What was measured for this or for the nearest neighbour: nearest in shape, then in rows."""
        known = [
            (shape.distance(other), abs(math.log2(rows / bucket)), choice.product, choice.seconds)
            for other, choices in self._choices.items()
            for rows, choice in choices.items()
            if other.dtype is shape.dtype and choice.product in self._products
        ]
        if not known:
            return Choice(self._default(), _UNMEASURED)
        doublings, away, name, seconds = min(known)
        return Choice(name, seconds if doublings <= SAME and away == 0 else _UNMEASURED)

    def _default(self) -> str:
        """A product that takes rows of every type."""
        return next(name for name in (*_PREFERRED, *self._products) if name in self._products)

    def choices(self) -> tuple[KernelChoice, ...]:
        """What was chosen, for every tap point and bucket; 0 seconds where a neighbour's choice was borrowed."""
        return tuple(
            KernelChoice(where, bucket, choice.product, choice.seconds)
            for where, bound in self._bound.items()
            for bucket, choice in zip(BUCKETS, bound.choices, strict=True)
        )

    def norms(self, plan: TapPlan) -> npt.NDArray[np.float64]:
        """[K], the Euclidean norms of the directions."""
        return self._of(plan).norms

    def project(self, plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType) -> FloatArray:
        """Readings of every row: rows @ directions + offsets, within ``products.BOUND``.

        values: [T, D] as they came, perhaps read-only, not kept. Returns float32 [T, K], valid until the next call: the
        memory is used again. Finite rows may overflow, others give NaN or infinities in every column. The plan must be bound.
        No allocation after warm-up. O(T*D*K).
        """
        bound = self._of(plan)
        name = bound.choices[bisect_right(BUCKETS, max(1, len(values))) - 1].product
        if not self._products[name].takes(dtype):
            name = self._default()
        product, prepared = self._products[name], bound.prepared[name]
        out = self._readings(len(values), len(plan.columns))
        step = chunk_rows(values.shape[1])
        for start in range(0, len(values), step):
            product.multiply(values[start : start + step], dtype, prepared, out[start : start + step])
        out += plan.offsets
        return out

    def _of(self, plan: TapPlan) -> _Bound:
        bound = self._bound.get(plan.tap_point)
        if bound is None or bound.plan is not plan:
            raise LookupError("rows of a plan that is not bound")
        return bound

    def _readings(self, rows: int, columns: int) -> FloatArray:
        if self._out.size < rows * columns:
            self._out = np.empty(rows * columns, dtype=np.float32)
        return self._out[: rows * columns].reshape(rows, columns)


def _load() -> None:
    with suppress(ImportError):  # whoever asks for the products is told
        importlib.import_module("torch")


def wire_type(model: ModelIdentity) -> ElementType:
    """The type in which the states of a model come, from its dtype as engines name it; bfloat16 if that says nothing.

    >>> wire_type(ModelIdentity("m", "Llama", 2, 8, dtype="float32")), wire_type(ModelIdentity("m", "Llama", 2, 8))
    (<ElementType.F32: 'f32'>, <ElementType.BF16: 'bf16'>)
    """
    return {"float32": ElementType.F32, "float16": ElementType.F16}.get(model.dtype, ElementType.BF16)
