"""StepBatch to readings: one product per tap point. Nothing is booked, so a refusal leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.errors import Rejected, RejectReason
from sidecar.reading.block import Block, check_finite, projected, sound
from sidecar.reading.circuit_readings import CircuitReadings
from sidecar.reading.gates import open_gates
from sidecar.reading.kernels import Kernels
from sidecar.reading.others import NOBODY, Answer, Others
from sidecar.reading.plan import Control, Plan, Share, TapPlan
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
    late_rows: int = 0  # arrived, and whoever was to multiply them was not ready in time

    @property
    def rows_scored(self) -> int:
        return self.rows - self.non_finite_rows - self.shed_rows - self.late_rows


@dataclass(frozen=True, slots=True)
class Readings:
    """All signals' readings of one step, in the order of Plan.signals."""

    plan: Plan
    generation: (
        int  # of the plan that the rows were multiplied by: an earlier one if a tap did it before it had this one
    )
    values: FloatArray  # [T, C], C columns of all signals in their order; 0 where not valid
    valid: BoolArray  # [T, S]: read, finite, within the signal's token span
    weight: npt.NDArray[np.int64]  # [S], how many tokens each reading stands for
    taps: tuple[TapRead, ...]
    rows_without_plan: int
    late: BoolArray  # [S], signals whose readings of this step were not there in time
    circuits: CircuitReadings | None = None

    @property
    def rows_scored(self) -> int:
        return sum(tap.rows_scored for tap in self.taps)

    @property
    def rows_shed(self) -> int:
        """Rows not read for want of time."""
        return sum(tap.shed_rows for tap in self.taps)

    @property
    def rows_late(self) -> int:
        """Rows whose readings were not there in time."""
        return sum(tap.late_rows for tap in self.taps)


def read(plan: Plan, batch: StepBatch, kernels: Kernels, shed: Shed = FULL, others: Others = NOBODY) -> Readings:
    """Read every tensor of the batch, but for what is shed. ``kernels`` and ``others`` are bound to the plan.

    A row is read by one generation: by the plan in force, or, if its tap multiplied, by the tap's. Raises Rejected for what is
    the sender's fault (width, values, a tap point or plan that does not exist).
    """
    if batch.plan_generation > plan.generation:
        raise Rejected(RejectReason.UNKNOWN_GENERATION, "step_batch.plan_generation")
    step = _Step(plan, batch, kernels, shed, others)
    with np.errstate(over="ignore", invalid="ignore"):
        step.ask()
        for i in step.order():
            step.read(i)
    return step.readings()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What others are to multiply, and where their answer comes from."""

    values: npt.NDArray[Any]
    answer: Answer


class _Sum:
    """What several tap points add to one signal, row by row."""

    def __init__(self, places: slice, rows: int) -> None:
        self.places = places
        self.values: FloatArray = np.zeros((rows, places.stop - places.start), dtype=np.float32)
        self.met = np.zeros(rows, dtype=np.int64)  # by how many tap points each row was read


class _Step:
    """The readings of one step in the making."""

    def __init__(self, plan: Plan, batch: StepBatch, kernels: Kernels, shed: Shed, others: Others) -> None:
        self._plan = plan
        self._batch = batch
        self._kernels = kernels
        self._shed = shed
        self._others = others
        self._asked: dict[int, _Asked] = {}  # by tensor
        self._positions = batch.segments.positions
        self._kept = shed.keeps(self._positions)
        self._gates = open_gates(plan, batch.segments)
        rows = batch.segments.token_count
        self._values = np.zeros((rows, plan.width), dtype=np.float32)
        self._valid = np.zeros((rows, len(plan.signals)), dtype=np.bool_)
        self._late = np.zeros(len(plan.signals), dtype=np.bool_)
        self._sums: dict[int, _Sum] = {}  # by signal, what other tap points than its own add to it
        self._taps: dict[int, TapRead] = {}  # by tensor
        self._without_plan = 0
        self._circuits = CircuitReadings.of(plan.circuit_places, batch.segments) if plan.circuits else None

    def readings(self) -> Readings:
        self._add_up()
        by_tap = any(tensor.projected for tensor in self._batch.tensors)
        return Readings(
            self._plan,
            self._batch.plan_generation if by_tap else self._plan.generation,
            self._values,
            self._valid,
            self._shed.weights(self._plan),
            tuple(self._taps[i] for i in sorted(self._taps)),
            self._without_plan,
            self._late,
            self._circuits,
        )

    def ask(self) -> None:
        """Hand out what others multiply, so that they do while this process multiplies the rest."""
        for i, tensor in enumerate(self._batch.tensors):
            tap_plan = self._plan.taps.get(tensor.tap_point)
            if tensor.projected or tap_plan is None or tensor.values.shape[1] != tap_plan.width:
                continue
            if self._left_out(tap_plan):
                continue
            values = _rows(tensor, self._kept_of(tap_plan))
            answer = self._others.ask(tap_plan, values, tensor.dtype)
            if answer is not None:
                self._asked[i] = _Asked(values, answer)

    def order(self) -> list[int]:
        """The tensors as they are to be read: those that others multiply come last."""
        return sorted(range(len(self._batch.tensors)), key=self._asked.__contains__)

    def _left_out(self, tap_plan: TapPlan) -> bool:
        return tap_plan.tap_point in self._shed.tap_points and self._shed.thins(self._plan, tap_plan)

    def _kept_of(self, tap_plan: TapPlan) -> BoolArray | None:
        return self._kept if self._shed.thins(self._plan, tap_plan) else None

    def read(self, index: int) -> None:
        tensor, path = self._batch.tensors[index], f"step_batch.tensors[{index}]"
        if not self._plan.model.has(tensor.tap_point):
            raise Rejected(RejectReason.UNKNOWN_TAP_POINT, f"{path}.tap_point.layer")
        width = self._plan.row_width(tensor.tap_point)
        if not tensor.projected and width not in (None, tensor.values.shape[1]):
            raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
        rows, tap_plan = len(tensor.values), self._plan.taps.get(tensor.tap_point)
        if tap_plan is None:  # a NaN is the sender's fault, read or not
            check_finite(tensor.values, tensor.dtype, f"{path}.{'projected' if tensor.projected else 'raw'}")
            self._without_plan += rows
        elif self._left_out(tap_plan):
            self._taps[index] = TapRead(tensor.tap_point, rows, 0, 0, 0, shed_rows=rows)
        elif tensor.projected:
            self._read_projected(index, tap_plan, path)
        else:
            self._read_raw(index, tap_plan, path)

    def _read_raw(self, index: int, tap_plan: TapPlan, path: str) -> None:
        tensor, kept, asked = self._batch.tensors[index], self._kept_of(tap_plan), self._asked.get(index)
        values = _rows(tensor, kept) if asked is None else asked.values
        readings = self._kernels.project(tap_plan, values, tensor.dtype) if asked is None else asked.answer()
        if readings is None:
            rows, late = len(self._positions), len(values)
            self._late[tap_plan.signals] = True
            self._late[[share.signal for share in tap_plan.shares]] = True
            self._taps[index] = TapRead(tap_plan.tap_point, rows, 0, 0, 0, shed_rows=rows - late, late_rows=late)
            return
        block = sound(readings, values, tensor.dtype, f"{path}.raw")
        self._put(block, tap_plan, kept)
        if self._circuits is not None and tap_plan.circuits is not None and kept is None:
            self._circuits.put_raw(tap_plan, block, values, tensor.dtype)
        self._taps[index] = self._told(block, tap_plan, kept)

    def _read_projected(self, index: int, tap_plan: TapPlan, path: str) -> None:
        tensor, kept = self._batch.tensors[index], self._kept_of(tap_plan)
        whole = projected(self._plan, tap_plan, tensor, self._batch.plan_generation, path)
        if whole is None:  # made by a plan of which nothing is left
            self._without_plan += len(tensor.values)
            return
        block = whole.of(kept)
        self._put(block, tap_plan, kept)
        if self._circuits is not None and tap_plan.circuits is not None and kept is None:
            self._circuits.put(tap_plan, block)
        checked, wrong = 0, 0
        if tensor.sample is not None and self._batch.plan_generation == self._plan.generation:
            checked, wrong = check_sample(self._kernels, tap_plan, tensor, tensor.sample, path)
        self._taps[index] = self._told(block, tap_plan, kept, checked, wrong)

    def _put(self, block: Block, tap_plan: TapPlan, kept: BoolArray | None) -> None:
        """Put the signals' readings in their place."""
        signals, places, owners = tap_plan.signals, tap_plan.places, tap_plan.owners
        readings = block.readings[:, : places.stop - places.start]  # [R, N]
        mask = block.usable(signals.stop - signals.start, owners)
        if self._gates is not None:
            gates = self._gates[:, signals] if kept is None else self._gates[kept, signals]
            mask = gates if mask is None else mask & gates
        rows = slice(None) if kept is None else kept
        self._valid[rows, signals] = True if mask is None else mask
        if mask is not None:
            readings = np.where(mask if owners is None else mask[:, owners], readings, np.float32(0))
        self._values[rows, places] = readings
        for share in tap_plan.shares:
            self._share(share, block, kept)

    def _share(self, share: Share, block: Block, kept: BoolArray | None) -> None:
        """Keep what this tap point adds to a signal of another one."""
        rows = slice(None) if kept is None else kept
        found = self._sums.setdefault(share.signal, _Sum(share.places, len(self._positions)))
        readings = block.readings[:, share.columns]
        usable = block.finite if block.there is None or block.there[share.columns].all() else np.False_
        met = np.zeros(len(self._positions), dtype=np.int64)
        met[rows] = True if usable is None else usable
        found.met += met
        found.values[rows] += np.where(met[rows, None] > 0, readings, np.float32(0))

    def _add_up(self) -> None:
        """A row of a signal of several tap points counts if all of them have read it."""
        shares = {share.signal: share for tap_plan in self._plan.taps.values() for share in tap_plan.shares}
        for share in shares.values():
            found = self._sums.get(share.signal)
            rows: BoolArray = self._valid[:, share.signal]
            rows &= False if found is None else found.met == len(self._plan.signals[share.signal].also)
            if found is not None:
                sums = self._values[:, share.places] + found.values
                self._values[:, share.places] = np.where(rows[:, None], sums, np.float32(0))

    def _told(
        self, block: Block, tap_plan: TapPlan, kept: BoolArray | None, checked: int = 0, wrong: int = 0
    ) -> TapRead:
        rows, read_rows = len(self._positions), len(block.readings)
        non_finite = 0 if block.finite is None else read_rows - int(np.count_nonzero(block.finite))
        control_rows = in_range = 0
        if tap_plan.control is not None and (block.there is None or block.there[tap_plan.control.column]):
            positions = self._positions if kept is None else self._positions[kept]
            control_rows, in_range = _control(tap_plan.control, block, positions)
        return TapRead(tap_plan.tap_point, rows, non_finite, control_rows, in_range, rows - read_rows, checked, wrong)


def _rows(tensor: TapTensor, kept: BoolArray | None) -> npt.NDArray[Any]:
    return tensor.values if kept is None else tensor.values[kept]


def _control(control: Control, block: Block, positions: PositionArray) -> tuple[int, int]:
    """(rows that the positive control read, rows that it read right)."""
    mask = positions >= control.skip_positions
    if block.finite is not None:
        mask &= block.finite
    column = block.readings[:, control.column][mask]
    return len(column), int(np.count_nonzero((column >= control.low) & (column <= control.high)))
