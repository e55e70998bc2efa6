"""StepBatch to readings: one product per tap point. Pure: nothing is booked, so a refusal leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.manifest import TokenSpan
from sidecar.errors import Dropped, DropReason, Rejected, RejectReason
from sidecar.reading.kernels import project, to_float32
from sidecar.reading.plan import Plan, TapPlan
from sidecar.types import BoolArray, FloatArray, Phase, PositionArray, StepBatch, TapPoint, TapTensor


@dataclass(frozen=True, slots=True)
class TapRead:
    """What one tap point gave: rows that arrived, and how its positive control read them."""

    tap_point: TapPoint
    rows: int
    non_finite_rows: int
    control_rows: int
    control_in_range: int


@dataclass(frozen=True, slots=True)
class Readings:
    """All signals' readings of one step, in the order of Plan.signals."""

    plan: Plan
    values: FloatArray  # [T, S]; 0 where not valid
    valid: BoolArray  # [T, S]: read, finite, within the signal's token span
    taps: tuple[TapRead, ...]
    rows_without_plan: int

    @property
    def rows_scored(self) -> int:
        return sum(tap.rows - tap.non_finite_rows for tap in self.taps)


def read(plan: Plan, batch: StepBatch) -> Readings:
    """Read every tensor of the batch.

    Raises Rejected for what is the sender's fault (width, values, a tap point or plan that does not exist), Dropped if a
    projected payload was multiplied by a plan that is no longer in force.
    """
    if batch.plan_generation > plan.generation:
        raise Rejected(RejectReason.UNKNOWN_GENERATION, "step_batch.plan_generation")
    tokens = batch.segments.token_count
    values = np.zeros((tokens, len(plan.signals)), dtype=np.float32)
    valid = np.zeros((tokens, len(plan.signals)), dtype=np.bool_)
    positions = batch.segments.positions
    gates = _gates(batch, plan)
    taps: list[TapRead] = []
    without_plan = 0
    for i, tensor in enumerate(batch.tensors):
        path = f"step_batch.tensors[{i}]"
        if tensor.tap_point.layer >= plan.model.layers:
            raise Rejected(RejectReason.UNKNOWN_TAP_POINT, f"{path}.tap_point.layer")
        tap_plan = plan.taps.get(tensor.tap_point)
        if tap_plan is None:
            _check_finite(_readable(tensor, plan, path), tensor, path)  # a NaN is the sender's fault, read or not
            without_plan += tokens
            continue
        readings, finite = _readings(tensor, tap_plan, plan, batch.plan_generation, path)
        mask = finite[:, None] & gates[:, plan.gate_of[tap_plan.signals]]  # [T, N]
        valid[:, tap_plan.signals] = mask
        values[:, tap_plan.signals] = np.where(mask, readings[:, tap_plan.signal_columns], np.float32(0))
        taps.append(_tap_read(tap_plan, readings, finite, positions))
    return Readings(plan, values, valid, tuple(taps), without_plan)


def _readable(tensor: TapTensor, plan: Plan, path: str) -> FloatArray:
    """The tensor's rows in float32. Raises Rejected for a wrong width."""
    if not tensor.projected and tensor.values.shape[1] != plan.model.width:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
    return to_float32(tensor.values, tensor.dtype)


def _check_finite(rows: FloatArray, tensor: TapTensor, path: str) -> None:
    if not np.isfinite(rows).all():
        raise Rejected(RejectReason.NON_FINITE, f"{path}.{'projected' if tensor.projected else 'raw'}")


def _readings(
    tensor: TapTensor, tap_plan: TapPlan, plan: Plan, generation: int, path: str
) -> tuple[FloatArray, BoolArray]:
    """Readings [T, K] and which rows are finite [T]; the others' readings are not to be used."""
    rows = _readable(tensor, plan, path)
    if tensor.projected:
        return _projected(rows, tensor, tap_plan, generation == plan.generation, path)
    readings, squared = project(rows, tap_plan.directions, tap_plan.offsets)
    finite: BoolArray = np.isfinite(squared)
    if not finite.all():
        _check_finite(rows[~finite], tensor, path)
    finite &= np.isfinite(readings).all(axis=1)
    return readings, finite


def _projected(
    rows: FloatArray, tensor: TapTensor, tap_plan: TapPlan, current: bool, path: str
) -> tuple[FloatArray, BoolArray]:
    if not current:
        raise Dropped(DropReason.NO_PLAN)
    if rows.shape[1] != len(tap_plan.columns) + 1:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
    _check_finite(rows, tensor, path)
    with np.errstate(over="ignore"):
        readings = rows[:, :-1] + tap_plan.offsets  # the offsets are ours: the tap multiplied, no more
    finite: BoolArray = np.isfinite(readings).all(axis=1)
    return readings, finite


def _tap_read(tap_plan: TapPlan, readings: FloatArray, finite: BoolArray, positions: PositionArray) -> TapRead:
    control = tap_plan.control
    checked = in_range = 0
    if control is not None:
        mask = finite & (positions >= control.skip_positions)
        column = readings[mask, control.column]
        checked = int(column.size)
        in_range = int(np.count_nonzero((column >= control.low) & (column <= control.high)))
    return TapRead(tap_plan.tap_point, len(finite), int(np.count_nonzero(~finite)), checked, in_range)


def _gates(batch: StepBatch, plan: Plan) -> BoolArray:
    """[T, number of gates]: which rows lie within each gate's token span and beyond its skipped positions."""
    segments = batch.segments
    phases = np.repeat(segments.phases, segments.rows)
    spans = {
        TokenSpan.PROMPT: phases == Phase.PREFILL,
        TokenSpan.GENERATED: phases == Phase.DECODE,
        TokenSpan.ALL: np.ones(len(phases), dtype=np.bool_),
    }
    made = np.empty((len(phases), len(plan.gates)), dtype=np.bool_)
    for i, (span, skip) in enumerate(plan.gates):
        made[:, i] = spans[span] & (segments.positions >= skip)
    return made
