"""Plans and batches of exact products, and a pipeline that shards multiply for."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.outcome import Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan
from sidecar.types import BatchId, ElementType, EngineId, StepBatch, TapLedgerCounts, TapPoint, TrafficReport
from sidecar.worker.shards import Shards
from tests.reading.plans import batch_of, model_of, plan_of, tap_plan, tensor_of

WIDTH = 64


TAPS = tuple(TapPoint(layer) for layer in range(6))


COLUMNS = (9, 2, 5, 3, 7, 4)


UNREAD = TapPoint(7)  # of the model, and no plan reads it


ENGINE = EngineId("e")


_generations = count(1)


_batches = count()


def make_plan(dtype: ElementType = ElementType.BF16, scale: float = 1.0, taps: tuple[TapPoint, ...] = TAPS) -> Plan:
    """A plan of its own generation; its directions are integers times ``scale``, so that sums of integer rows are exact."""
    rng = np.random.default_rng(7)
    plans, first = [], 0
    for where, columns in zip(taps, COLUMNS, strict=False):
        plans.append(tap_plan(where, scale * rng.integers(-2, 3, (WIDTH, columns)), first))
        first += columns - 1
    return plan_of(plans, model_of(WIDTH, dtype), next(_generations))


class Sharded:
    """A pipeline with a registered engine, and whoever multiplies for it."""

    def __init__(self, clock: Clock, shards: Shards | None = None, product: str = "numpy_f32", **sections: Any) -> None:
        self._clock = clock
        self.pipeline = Pipeline(
            Config.model_validate({"ladder": {"enabled": False}, **sections}),
            clock,
            lambda _: None,
            kernels=Kernels(0.01, [product]),
        )
        if shards is not None:
            self.pipeline.others = shards

    def bind(self, plan: Plan) -> None:
        self.pipeline.admit(plan.model, ENGINE)
        self.pipeline.bind(plan)
        self.pipeline.introduce(TrafficReport(ENGINE, 0, 0, (), 0, TapLedgerCounts()))

    def submit(self, batch: StepBatch) -> Result:
        now_s = self._clock.monotonic_s()
        self.pipeline.arrive()
        try:
            return self.pipeline.submit(batch, Arrival(now_s, now_s))
        finally:
            self.pipeline.settle()
            assert self.pipeline.books.ledger.step_batches.counts().balanced
            assert self.pipeline.books.ledger.rows.counts().in_flight == 0

    def rows(self) -> dict[str, int]:
        """Where rows have gone so far, without what is 0."""
        now = self.pipeline.books.ledger.rows.counts()
        gone = {"scored": now.scored, **now.dropped, **now.rejected}
        return {str(name): rows for name, rows in gone.items() if rows}


def named(batch: StepBatch, **changes: Any) -> StepBatch:
    return replace(batch, batch_id=BatchId(f"b{next(_batches)}"), **changes)


def make_batch(taps: tuple[TapPoint, ...] = TAPS, tokens: int = 3, seed: int = 0, **changes: Any) -> StepBatch:
    """Integer rows, so that every product is exact whoever computes it."""
    rng = np.random.default_rng(seed)
    tensors = [tensor_of(where, rng.integers(-3, 4, (tokens, WIDTH)), ElementType.BF16) for where in taps]
    return named(batch_of(*tensors), **{"plan_generation": 0, **changes})


def freeze(pid: int) -> None:
    """Returns when the process, a child of this one, has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def kill(pid: int) -> None:
    """Returns when the process, a child of this one, is dead."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
