"""``python -m bench.alone WIDTH ROWS COLUMNS TAPS``: the worker's product by itself, as it is multiplied in the loop.

The same class with the same plan, the same environment, states in a ring's slots in turn. Reads orders on its standard
input, one a line, and answers each with a line of JSON: ``steps N`` multiplies N steps (CPU seconds of a step);
``race N`` times every candidate N times for every size of step (the best seconds of each, by rows).
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.artifacts import BENCH_MODEL
from sidecar.reading.calibration import BUCKETS, chunk_rows
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan, TapPlan
from sidecar.reading.products import available
from sidecar.ring import Ring
from sidecar.ring import Shape as RingShape
from sidecar.types import ElementType, ModelIdentity, TapPoint


class Alone:
    def __init__(self, width: int, rows: int, columns: int, taps: int) -> None:
        rng = np.random.default_rng(0)
        self._rng = rng
        points = [TapPoint(layer) for layer in range(taps)]
        made = {point: _tap_plan(point, rng.normal(size=(width, columns)).astype(np.float32)) for point in points}
        model = ModelIdentity(**{**BENCH_MODEL, "width": width})
        self._plan = Plan(1, model, made, (), (), np.empty(0, dtype=np.intp), ())
        self._kernels = Kernels()
        self._kernels.bind(self._plan)
        self._slots = _slots(rng, (taps, rows, width))

    def steps(self, count: int) -> float:
        """CPU seconds of one step's products."""
        start_s = time.thread_time()
        for number in range(count):
            for values, plan in zip(self._slots[number % 2], self._plan.taps.values(), strict=True):
                self._kernels.project(plan, values, ElementType.BF16)
        return (time.thread_time() - start_s) / count

    def race(self, count: int) -> dict[str, dict[str, float]]:
        """The best seconds of every product, by rows of a step."""
        (plan, *_), products = self._plan.taps.values(), available()[0]
        prepared = {name: product.prepare(plan.directions) for name, product in products.items()}
        values, _ = _bf16(self._rng, (BUCKETS[-1], plan.directions.shape[0])), None
        best: dict[str, dict[str, float]] = {str(rows): dict.fromkeys(products, float("inf")) for rows in BUCKETS}
        step = chunk_rows(values.shape[1])
        for rows in BUCKETS:
            out = np.empty((rows, plan.directions.shape[1]), dtype=np.float32)
            for _ in range(max(3, count * 64 // max(rows, 64))):
                for name, product in products.items():
                    start_s = time.perf_counter()
                    for at in range(0, rows, step):  # in pieces, as the loop multiplies
                        product.multiply(
                            values[at : at + step][: rows - at], ElementType.BF16, prepared[name], out[at : at + step]
                        )
                    best[str(rows)][name] = min(best[str(rows)][name], time.perf_counter() - start_s)
        return best


def _tap_plan(where: TapPoint, directions: npt.NDArray[np.float32]) -> TapPlan:
    columns = directions.shape[1]
    names = tuple(f"c{k}" for k in range(columns))
    nothing = slice(0, 0)
    return TapPlan(where, names, directions, np.zeros(columns, dtype=np.float32), nothing, nothing, None)


def _bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    return (rng.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _slots(rng: np.random.Generator, shape: tuple[int, int, int]) -> list[npt.NDArray[Any]]:
    """Two steps in shared memory, [taps, rows, width]."""
    size = 2 * int(np.prod(shape))
    ring = Ring.create(RingShape(slots=2, slot_bytes=size))
    views = [np.frombuffer(ring.slot(number), np.uint16, size // 2, 64).reshape(shape) for number in (1, 2)]
    for view in views:
        view[...] = _bf16(rng, shape)
    return views


def main() -> None:
    alone = Alone(*map(int, sys.argv[1:]))
    gc.disable()
    for line in sys.stdin:
        what, count = line.split()
        print(json.dumps(alone.steps(int(count)) if what == "steps" else alone.race(int(count))), flush=True)


if __name__ == "__main__":
    main()
