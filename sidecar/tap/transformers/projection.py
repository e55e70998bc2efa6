"""Projected mode: rows become readings where the states are, and the hidden states stay in the engine.

Readings are ``rows @ directions`` in float32, without offsets, and behind them the squared norm: [T, K + 1]. On a GPU the
product runs at once, on the engine's own stream, and [T, K + 1] follows it to the host. On a CPU the engine's thread only
copies rows, as in raw mode, and the sender's thread multiplies.

The sidecar's own product of the same rows differs by the order of its sums alone. For a row x of D elements and a direction w
each of the two is within g |x| |w| of the exact value, g = D u / (1 - D u), u = 2^-24 (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., eq. 3.5, and Cauchy-Schwarz): they differ by at most 2 g |x| |w|.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from sidecar.tap.faults import Unsupported
from sidecar.tap.plan import FetchedPlan
from sidecar.tap.recorder import OpenStep
from sidecar.tap.step import Sample
from sidecar.tap.transformers.states import TorchStates, chosen_rows, to_host
from sidecar.types import ElementType, FloatArray, TapPoint

SAMPLE_ROWS = 4
_SPREAD = 0x9E3779B1  # 2^32 / golden ratio: multiples of it fall evenly, in step with no rhythm of the traffic
_ROOM = 64  # columns: a device's buffers grow by so many, so that a plan with another probe still fits
_EXACT = ("ieee", "none")  # what torch calls float32 products without TF32


@dataclass(frozen=True, slots=True)
class Readings:
    """[T, K + 1] that a device has made."""

    values: TorchStates
    sample: Sample | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    @property
    def dtype(self) -> ElementType:
        return ElementType.F32

    @property
    def projected(self) -> bool:
        return True

    @property
    def held_bytes(self) -> int:
        return self.values.held_bytes + (0 if self.sample is None else self.sample.states.held_bytes)

    def part(self, start: int, stop: int) -> Readings:
        return Readings(self.values.part(start, stop), _part(self.sample, start, stop))

    def write(self, into: memoryview) -> None:
        self.values.write(into)


@dataclass(frozen=True, slots=True)
class Product:
    """[T, K + 1], made by whoever writes it: rows [T, D] on the CPU, and directions [D, K]."""

    rows: torch.Tensor
    directions: FloatArray
    sample: Sample | None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows.shape[0], self.directions.shape[1] + 1)

    @property
    def dtype(self) -> ElementType:
        return ElementType.F32

    @property
    def projected(self) -> bool:
        return True

    @property
    def held_bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()  # the sample is among them

    def part(self, start: int, stop: int) -> Product:
        return Product(self.rows[start:stop], self.directions, _part(self.sample, start, stop))

    def write(self, into: memoryview) -> None:
        made = np.frombuffer(into, np.float32).reshape(self.shape)
        rows = self.rows.float().numpy()  # float32 as it is
        with np.errstate(over="ignore", invalid="ignore"):  # the sidecar looks at what comes
            np.matmul(rows, self.directions, out=made[:, :-1])
            np.einsum("td,td->t", rows, rows, out=made[:, -1])


def _part(sample: Sample | None, start: int, stop: int) -> Sample | None:
    return None if sample is None else sample.part(start, stop)


class _Where(NamedTuple):
    device: torch.device
    stream: int


@dataclass(slots=True)
class _Resident:
    """The plan as it lies on a device, in memory that stays where it is."""

    plan: FetchedPlan | None = None
    buffers: dict[TapPoint, torch.Tensor] = field(default_factory=dict)  # float32 [D, room for K]

    def load(self, plan: FetchedPlan, device: torch.device) -> None:
        """Queued behind the products of the steps before, which keep their own plan. Waits for nothing."""
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
        ):  # a buffer made in inference mode could not be written again
            for point, one in plan.points.items():
                fresh = torch.tensor(one.directions).pin_memory()  # [D, K]
                self._buffer(point, fresh.shape, device).copy_(fresh, non_blocking=True)
        self.plan = plan

    def _buffer(self, point: TapPoint, shape: torch.Size, device: torch.device) -> torch.Tensor:
        width, columns = shape
        buffer = self.buffers.get(point)
        if buffer is None or buffer.shape[0] != width or buffer.shape[1] < columns:
            room = -(-columns // _ROOM) * _ROOM
            buffer = self.buffers[point] = torch.zeros((width, room), device=device)
        return buffer[:, :columns]


class _Local(threading.local):
    def __init__(self) -> None:
        self.resident: dict[_Where, _Resident] = {}


class Projection:
    """Multiplies by the plan that the step began with. A device's buffers belong to one thread and one of its streams."""

    def __init__(self) -> None:
        self._local = _Local()

    def states(self, step: OpenStep, plan: FetchedPlan, point: TapPoint, output: torch.Tensor) -> Readings | Product:
        """Readings of the step's chosen rows of ``output`` [..., D].

        Raises Unsupported if the plan reads nothing there (a layer that only the engine's side has named: its rows do not
        leave the engine), ValueError for states of another width than the plan's.
        """
        found = plan.points.get(point)
        if found is None:
            raise Unsupported("a layer that the plan does not read, in projected mode")
        width, columns = found.directions.shape
        if output.shape[-1] != width:
            raise ValueError("the plan is for states of another width")
        rows = chosen_rows(step, output)
        sampled = sample_rows(step.number, rows.shape[0], step.sampled_steps)
        if rows.device.type == "cpu":
            return Product(rows, found.directions, _sample(rows, sampled))
        directions = self._on_device(plan, rows.device).buffers[point][:, :columns]
        return Readings(to_host(multiply(rows, directions)), _sample(rows, sampled))

    def _on_device(self, plan: FetchedPlan, device: torch.device) -> _Resident:
        """The whole plan, changed for another one before the first product of a step."""
        where = _Where(device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
        resident = self._local.resident.setdefault(where, _Resident())
        if resident.plan is not plan:
            resident.load(plan, device)
        return resident


def multiply(rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Rows [T, D] of any type, directions float32 [D, K] -> float32 [T, K + 1]: products, then squared norms.

    Where the engine has allowed TF32, which has 10 bits, the product is made in float64: nobody's settings are touched.
    """
    rows = rows.float()
    made = torch.empty((rows.shape[0], directions.shape[1] + 1), device=rows.device)
    if getattr(torch.backends.cuda.matmul, "fp32_precision", "unknown") in _EXACT:
        made[:, :-1] = rows @ directions
    else:
        made[:, :-1] = rows.double() @ directions.double()
    made[:, -1] = (rows * rows).sum(dim=1)
    return made


def sample_rows(step: int, rows: int, share: float) -> range:
    """Which of a step's rows go along as they are: up to 4, and none in most steps. The same for the same step.

    >>> sample_rows(7, 100, 1.0), sample_rows(7, 100, 0.0), sum(bool(sample_rows(n, 1, 0.01)) for n in range(10_000))
    (range(18, 118, 25), range(0, 0), 101)
    """
    drawn = step * _SPREAD & 0xFFFFFFFF
    if not drawn < share * 2**32:
        return range(0)
    stride = max(1, rows // SAMPLE_ROWS)
    return range(drawn % stride, rows, stride)[:SAMPLE_ROWS]


def _sample(rows: torch.Tensor, which: range) -> Sample | None:
    if not which:
        return None
    kept = rows[which.start : which.stop : which.step]
    return Sample(tuple(which), TorchStates(kept) if kept.device.type == "cpu" else to_host(kept.contiguous()))
