"""StepBatch to readings: one product per tap point. Pure: nothing is booked, so a refusal leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.errors import Rejected, RejectReason
from sidecar.reading.block import Block, check_finite, multiply, projected
from sidecar.reading.gates import open_gates
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Control, Plan, TapPlan
from sidecar.reading.samples import check_sample
from sidecar.reading.shed import FULL, Shed
from sidecar.types import BoolArray, FloatArray, PositionArray, StepBatch, TapPoint, TapTensor


@dataclass(frozen=True, slots=True)
class TapRead:
    """What one tap point gave: rows that arrived, and how its positive control read them."""

    tap_point: TapPoint
    rows: int
    non_finite_rows: int
    control_rows: int
    control_in_range: int
    shed_rows: int = 0  # arrived, and were not read
    checked_rows: int = 0  # multiplied by the tap, and here again
    wrong_rows: int = 0  # of those, with other readings than the tap's


@dataclass(frozen=True, slots=True)
class Readings:
    """All signals' readings of one step, in the order of Plan.signals."""

    plan: Plan
    generation: (
        int  # of the plan that the rows were multiplied by: an earlier one if a tap did it before it had this one
    )
    values: FloatArray  # [T, S]; 0 where not valid
    valid: BoolArray  # [T, S]: read, finite, within the signal's token span
    weight: npt.NDArray[np.int64]  # [S], how many tokens each reading stands for
    taps: tuple[TapRead, ...]
    rows_without_plan: int

    @property
    def rows_scored(self) -> int:
        return sum(tap.rows - tap.non_finite_rows - tap.shed_rows for tap in self.taps)

    @property
    def rows_shed(self) -> int:
        """Rows not read for want of time."""
        return sum(tap.shed_rows for tap in self.taps)


def read(plan: Plan, batch: StepBatch, kernels: Kernels, shed: Shed = FULL) -> Readings:
    """Read every tensor of the batch, but for what is shed. ``kernels`` is bound to the plan.

    A row is read by one generation: by the plan in force, or, if its tap multiplied, by the tap's. Raises Rejected for what is
    the sender's fault (width, values, a tap point or plan that does not exist).
    """
    if batch.plan_generation > plan.generation:
        raise Rejected(RejectReason.UNKNOWN_GENERATION, "step_batch.plan_generation")
    step = _Step(plan, batch, kernels, shed)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, tensor in enumerate(batch.tensors):
            step.read(tensor, f"step_batch.tensors[{i}]")
    return step.readings()


class _Step:
    """The readings of one step in the making."""

    def __init__(self, plan: Plan, batch: StepBatch, kernels: Kernels, shed: Shed) -> None:
        self._plan = plan
        self._batch = batch
        self._kernels = kernels
        self._shed = shed
        self._positions = batch.segments.positions
        self._kept = shed.keeps(self._positions)
        self._gates = open_gates(plan, batch.segments)
        shape = (batch.segments.token_count, len(plan.signals))
        self._values = np.zeros(shape, dtype=np.float32)
        self._valid = np.zeros(shape, dtype=np.bool_)
        self._taps: list[TapRead] = []
        self._without_plan = 0

    def readings(self) -> Readings:
        by_tap = any(tensor.projected for tensor in self._batch.tensors)
        return Readings(
            self._plan,
            self._batch.plan_generation if by_tap else self._plan.generation,
            self._values,
            self._valid,
            self._shed.weights(self._plan),
            tuple(self._taps),
            self._without_plan,
        )

    def read(self, tensor: TapTensor, path: str) -> None:
        if tensor.tap_point.layer >= self._plan.model.layers:
            raise Rejected(RejectReason.UNKNOWN_TAP_POINT, f"{path}.tap_point.layer")
        if not tensor.projected and tensor.values.shape[1] != self._plan.model.width:
            raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
        rows, tap_plan = len(tensor.values), self._plan.taps.get(tensor.tap_point)
        if tap_plan is None:  # a NaN is the sender's fault, read or not
            check_finite(tensor.values, tensor.dtype, f"{path}.{'projected' if tensor.projected else 'raw'}")
            self._without_plan += rows
            return
        thinned = self._shed.thins(self._plan, tap_plan)
        if thinned and tensor.tap_point in self._shed.tap_points:
            self._taps.append(TapRead(tensor.tap_point, rows, 0, 0, 0, shed_rows=rows))
            return
        kept = self._kept if thinned else None
        block = self._block(tensor, tap_plan, kept, path)
        if block is None:
            self._without_plan += rows
            return
        self._put(block, tap_plan, kept)
        checked, wrong = 0, 0
        if tensor.sample is not None and self._batch.plan_generation == self._plan.generation:
            checked, wrong = check_sample(self._kernels, self._plan, tap_plan, tensor, tensor.sample, path)
        self._taps.append(self._told(block, tap_plan, kept, checked, wrong))

    def _block(self, tensor: TapTensor, tap_plan: TapPlan, kept: BoolArray | None, path: str) -> Block | None:
        """The readings of the kept rows; None if a tap made them by a plan of which nothing is left."""
        if not tensor.projected:
            values = tensor.values if kept is None else tensor.values[kept]
            return multiply(self._kernels, tap_plan, values, tensor.dtype, f"{path}.raw")
        block = projected(self._plan, tap_plan, tensor, self._batch.plan_generation, path)
        return None if block is None else block.of(kept)

    def _put(self, block: Block, tap_plan: TapPlan, kept: BoolArray | None) -> None:
        """Put the signals' readings in their place."""
        signals = tap_plan.signals
        readings = block.readings[:, : signals.stop - signals.start]  # [R, N]
        mask = block.usable(readings.shape[1])
        if self._gates is not None:
            gates = self._gates[:, signals] if kept is None else self._gates[kept, signals]
            mask = gates if mask is None else mask & gates
        rows = slice(None) if kept is None else kept
        self._values[rows, signals] = readings if mask is None else np.where(mask, readings, np.float32(0))
        self._valid[rows, signals] = True if mask is None else mask

    def _told(self, block: Block, tap_plan: TapPlan, kept: BoolArray | None, checked: int, wrong: int) -> TapRead:
        rows, read_rows = len(self._positions), len(block.readings)
        non_finite = 0 if block.finite is None else read_rows - int(np.count_nonzero(block.finite))
        control_rows = in_range = 0
        if tap_plan.control is not None and (block.there is None or block.there[tap_plan.control.column]):
            positions = self._positions if kept is None else self._positions[kept]
            control_rows, in_range = _control(tap_plan.control, block, positions)
        return TapRead(tap_plan.tap_point, rows, non_finite, control_rows, in_range, rows - read_rows, checked, wrong)


def _control(control: Control, block: Block, positions: PositionArray) -> tuple[int, int]:
    """(rows that the positive control read, rows that it read right)."""
    mask = positions >= control.skip_positions
    if block.finite is not None:
        mask &= block.finite
    column = block.readings[:, control.column][mask]
    return len(column), int(np.count_nonzero((column >= control.low) & (column <= control.high)))
