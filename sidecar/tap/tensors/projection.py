"""Projected mode: rows become readings where the states are, and the hidden states stay in the engine.

Readings are ``rows @ directions`` in float32, without offsets, and behind them the squared norm: [T, K + 1]. The engine's
thread only copies rows, as in raw mode, and the sender's thread multiplies: on a GPU those of all tap points together, and only
the readings follow to the host.

The sidecar's own product of the same rows differs by the order of its sums alone. For a row x of D elements and a direction w
each of the two is within g |x| |w| of the exact value, g = D u / (1 - D u), u = 2^-24 (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., eq. 3.5, and Cauchy-Schwarz): they differ by at most 2 g |x| |w|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sidecar.tap.faults import Unsupported
from sidecar.tap.joined import JoinedStates, joined_sample
from sidecar.tap.plan import FetchedPlan, PointPlan
from sidecar.tap.recorder import OpenStep
from sidecar.tap.step import Sample, States
from sidecar.tap.tensors.states import Later, TorchStates, copy_rows
from sidecar.types import ElementType, FloatArray, IndexArray, TapPoint

SAMPLE_ROWS = 4
_SPREAD = 0x9E3779B1  # 2^32 / golden ratio: multiples of it fall evenly, in step with no rhythm of the traffic
_EXACT = ("ieee", "none")  # what torch calls float32 products without TF32


@dataclass(frozen=True, slots=True)
class Readings:
    """[T, K + 1] that a device has made: rows ``start:stop`` of the R that it read at this tap point."""

    made: Later  # float32 [R * room + R]: products, with room for K or more directions, then the rows' norms
    columns: int  # K
    start: int
    stop: int
    total: int  # R
    held_bytes: int
    sample: Sample | None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.stop - self.start, self.columns + 1)

    @property
    def dtype(self) -> ElementType:
        return ElementType.F32

    @property
    def projected(self) -> bool:
        return True

    def joined(self, others: Sequence[States], order: IndexArray) -> JoinedStates:
        return JoinedStates.of([self, *others], order)

    def part(self, start: int, stop: int) -> Readings:
        sample = None if self.sample is None else self.sample.part(start, stop)
        return replace(self, start=self.start + start, stop=self.start + stop, sample=sample)

    def write(self, into: memoryview) -> None:
        made, rows = self.made().numpy(), slice(self.start, self.stop)
        values = np.frombuffer(into, np.float32).reshape(self.shape)
        values[:, :-1] = made[: -self.total].reshape(self.total, -1)[rows, : self.columns]
        with np.errstate(over="ignore"):  # the sidecar looks at what comes
            np.square(made[-self.total :][rows], out=values[:, -1])


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
        return self.rows.nbytes  # the sample is among them

    def joined(self, others: Sequence[States], order: IndexArray) -> States:
        parts = [self, *others]
        rows = [part.rows for part in parts if isinstance(part, Product) and part.directions is self.directions]
        if len(rows) < len(parts):
            return JoinedStates.of(parts, order)
        chosen = torch.cat(rows).index_select(0, torch.from_numpy(order))
        return Product(chosen, self.directions, joined_sample(parts, order))

    def part(self, start: int, stop: int) -> Product:
        sample = None if self.sample is None else self.sample.part(start, stop)
        return Product(self.rows[start:stop], self.directions, sample)

    def write(self, into: memoryview) -> None:
        made = np.frombuffer(into, np.float32).reshape(self.shape)
        rows = self.rows.float().numpy()  # float32 as it is
        with np.errstate(over="ignore", invalid="ignore"):  # the sidecar looks at what comes
            np.matmul(rows, self.directions, out=made[:, :-1])
            np.einsum("td,td->t", rows, rows, out=made[:, -1])


def product(step: OpenStep, plan: FetchedPlan, point: TapPoint, states: torch.Tensor) -> Product:
    """Readings of the step's chosen rows of ``states`` [..., D] on the CPU, still to be made. Raises what ``read_by`` does."""
    directions = read_by(plan, point, states.shape[-1]).directions
    rows = copy_rows(step, states).rows
    which = sample_rows(step.number, rows.shape[0], step.sampled_steps)
    sample = Sample(tuple(which), TorchStates(rows[which.start : which.stop : which.step])) if which else None
    return Product(rows, directions, sample)


def read_by(plan: FetchedPlan, point: TapPoint, width: int) -> PointPlan:
    """What the plan reads there.

    Raises Unsupported if that is nothing (a layer that only the engine's side has named: its rows do not leave the engine),
    ValueError for states of another width than the plan's.
    """
    found = plan.points.get(point)
    if found is None:
        raise Unsupported("a layer that the plan does not read, in projected mode")
    if found.directions.shape[0] != width:
        raise ValueError("the plan is for states of another width")
    return found


@dataclass(frozen=True, slots=True)
class Made:
    """Where a device makes the readings of P tap points, T rows each, in one piece: [P, T * K + T], as ``Readings`` has it."""

    whole: torch.Tensor
    products: torch.Tensor  # [P, T, K]
    norms: torch.Tensor  # [P, T]

    @classmethod
    def empty(cls, points: int, rows: int, columns: int, device: torch.device) -> Made:
        size = rows * (columns + 1)
        whole = torch.empty((points, size), dtype=torch.float32, device=device)
        products = whole.as_strided((points, rows, columns), (size, columns, 1))
        return cls(whole, products, whole[:, rows * columns :])

    @property
    def shape(self) -> tuple[int, int, int]:
        points, rows, columns = self.products.shape
        return (points, rows, columns)


def multiply(rows: torch.Tensor, directions: torch.Tensor, into: Made) -> None:
    """Rows [P, T, D] of any type, directions float32 [P, D, K]: products and norms, by three launches.

    Where the engine has allowed TF32, which has 10 bits, the product is made in float64: nobody's settings are touched. And
    autocast leaves alone what has an ``out``.
    """
    rows = rows.float()
    if getattr(torch.backends.cuda.matmul, "fp32_precision", "unknown") in _EXACT:
        torch.bmm(rows, directions, out=into.products)
    else:
        into.products.copy_(torch.bmm(rows.double(), directions.double()))
    torch.linalg.vector_norm(rows, dim=-1, out=into.norms)


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
