"""Plans and batches for tests of the read path, made without files or wires."""

from __future__ import annotations

from typing import Any

import numpy as np

from probes.manifest import TokenSpan
from sidecar.reading.calibration import narrow
from sidecar.reading.plan import Control, Plan, Signal, TapPlan
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    ModelIdentity,
    Phase,
    RequestId,
    RowSample,
    Segments,
    StepBatch,
    TapPoint,
    TapTensor,
)
from tests.builders import make_signal

DTYPES = {ElementType.F32: "float32", ElementType.F16: "float16", ElementType.BF16: "bfloat16"}


def model_of(width: int, dtype: ElementType = ElementType.F32) -> ModelIdentity:
    return ModelIdentity("m", "Llama", 8, width, dtype=DTYPES[dtype])


def tap_plan(
    where: TapPoint, directions: np.ndarray, first: int = 0, digests: tuple[str, ...] = (), **changes: Any
) -> TapPlan:
    """Every column a signal, but for the last one, which is the control."""
    K = directions.shape[1]
    names = tuple(f"{where.name}-{k}" for k in range(K))
    fields: dict[str, Any] = {
        "tap_point": where,
        "columns": names,
        "directions": directions.astype(np.float32),
        "offsets": np.zeros(K, np.float32),
        "signals": slice(first, first + K - 1),
        "places": slice(first, first + K - 1),
        "control": Control(K - 1, -1e9, 1e9, 0),
        "origins": tuple((digest, 0) for digest in digests or names),
    }
    return TapPlan(**{**fields, **changes})


def plan_of(taps: list[TapPlan], model: ModelIdentity, generation: int = 1, skip: int = 0, **changes: Any) -> Plan:
    signals: list[Signal] = []
    for tap in taps:
        signals += [
            make_signal(tap.columns[k], tap_point=tap.tap_point, column=k, skip_positions=skip)
            for k in range(tap.signals.stop - tap.signals.start)
        ]
    gates = ((TokenSpan.ALL, skip),)
    by_tap = {tap.tap_point: tap for tap in taps}
    return Plan(generation, model, by_tap, tuple(signals), gates, np.zeros(len(signals), np.intp), (), **changes)


def tensor_of(where: TapPoint, rows: np.ndarray, dtype: ElementType = ElementType.F32, **changes: Any) -> TapTensor:
    values = narrow(rows.astype(np.float32), dtype)
    values.flags.writeable = False  # as decoded
    return TapTensor(where, dtype, values, **changes)


def batch_of(
    *tensors: TapTensor, generation: int = 1, rows: tuple[int, ...] = (), first: int = 0, phase: Phase = Phase.DECODE
) -> StepBatch:
    """Requests with ``rows`` rows each (one each if not given), all beginning at position ``first``."""
    total = len(tensors[0].values)
    lengths = np.array(rows or (1,) * total, dtype=np.intp)
    segments = Segments(
        tuple(RequestId(f"r{i}") for i in range(len(lengths))),
        np.cumsum(lengths) - lengths,
        lengths,
        np.concatenate([first + np.arange(n) for n in lengths]).astype(np.uint32),
        np.full(len(lengths), phase, np.int8),
        np.zeros(len(lengths), np.intp),
    )
    return StepBatch(BatchId("b"), EngineId("e"), 0, generation, 1, segments, tensors)


def sample_of(rows: list[int], states: np.ndarray, dtype: ElementType = ElementType.F32) -> RowSample:
    return RowSample(np.array(rows, np.intp), dtype, narrow(states[rows].astype(np.float32), dtype))
