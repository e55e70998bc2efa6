"""Plans, a client that has one, and what must be read by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sidecar.tap.plan import FetchedPlan, PointPlan
from sidecar.tap.step import CapturedStep, States, payload_bytes
from sidecar.tap.transformers import attach
from sidecar.tap.transformers.tap import Tap
from sidecar.tap.wire import Settings
from sidecar.types import ElementType, Mode, SamplingPolicy, TapPoint
from tests.tap.engine import left_padded
from tests.tap.models import WIDTH
from tests.tap.test_recorder import Keeper

NAMES = ["a", "b", "c"]
POINTS = (TapPoint(1), TapPoint(2))
COLUMNS = 5
NOTHING: Any = None  # the event of a device, where there is none
Values = npt.NDArray[np.float32]


class Planned(Keeper):
    """A client that has fetched a plan, whose other end is a list."""

    def __init__(
        self,
        plan: FetchedPlan | None,
        mode: Mode = Mode.PROJECTED,
        sampled_steps: float = 0.0,
        asked: tuple[TapPoint, ...] = POINTS,
    ) -> None:
        super().__init__()
        self._given = plan
        self.settings = Settings(1, SamplingPolicy(1.0), asked, mode, sampled_steps)

    @property
    def plan(self) -> FetchedPlan | None:
        return self._given

    def swap(self, plan: FetchedPlan) -> None:
        self._given = plan
        self.settings = Settings(plan.generation, SamplingPolicy(1.0), POINTS, Mode.PROJECTED)


def plan(
    generation: int = 1, *, width: int = WIDTH, columns: int = COLUMNS, layers: tuple[int, ...] = (1, 2)
) -> FetchedPlan:
    """Random directions, others for every generation and tap point."""
    points = {}
    for layer in layers:
        directions = np.random.default_rng([generation, layer]).normal(size=(width, columns)).astype(np.float32)
        directions.setflags(write=False)
        points[TapPoint(layer)] = PointPlan(tuple(f"d{k}" for k in range(columns)), directions)
    return FetchedPlan(generation, MappingProxyType(points))


def bound(rows: Values, directions: Values) -> npt.NDArray[np.float64]:
    """How far a float32 product may lie from the exact one: D u / (1 - D u) times the norms. [T, K]."""
    unit = rows.shape[1] * 2.0**-24
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] * np.linalg.norm(
        directions.astype(np.float64), axis=0
    )
    found: npt.NDArray[np.float64] = unit / (1 - unit) * norms
    return found


def written(states: States) -> Values:
    """What goes on the wire, in float32."""
    payload = bytearray(payload_bytes(states))
    states.write(memoryview(payload))
    assert states.dtype is ElementType.F32
    return np.frombuffer(payload, np.float32).reshape(states.shape)


@contextmanager
def kept(model: Any, client: Planned, **settings: Any) -> Iterator[Tap]:
    tap = attach(model, client=client, **settings)
    try:
        yield tap
    finally:
        tap.detach()
        client.stop()


def generate(model: Any, tap: Tap) -> torch.Tensor:
    with tap.requests(NAMES):
        output: torch.Tensor = model.generate(**left_padded(), max_new_tokens=4, do_sample=False, eos_token_id=None)
    return output


def by_position(steps: list[CapturedStep], point: TapPoint) -> dict[tuple[str, int], Values]:
    """Every row that was kept, by request and position."""
    found: dict[tuple[str, int], Values] = {}
    for step in steps:
        values = written(dict(step.tensors)[point])
        keys = [(segment.wire_id, position) for segment in step.segments for position in segment.positions]
        assert len(keys) == len(values)
        assert not found.keys() & set(keys)
        found |= dict(zip(keys, values, strict=True))
    return found
