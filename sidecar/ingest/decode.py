"""Bytes to StepBatch, or a refusal that names the field. Sizes are checked before anything of that size is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.clock import Clock
from sidecar.config import Limits
from sidecar.errors import Rejected, RejectReason
from sidecar.ingest.checks import BATCH_ID_CHARS, ENGINE_ID_CHARS, check_digest, check_fact, check_id, check_ids
from sidecar.ingest.segments import decode_segments
from sidecar.ring import ALIGN as SLOT_ALIGN
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    ModelIdentity,
    RequestId,
    RowSample,
    Site,
    Stack,
    StepBatch,
    TapLedgerCounts,
    TapPoint,
    TapTensor,
    TrafficReport,
    UnseenReason,
)

_STACKS = {ingest_pb2.STACK_UNSPECIFIED: Stack.DECODER, ingest_pb2.STACK_ENCODER: Stack.ENCODER}
_SITES, _ELEMENTS = dict(enumerate(Site, 1)), dict(enumerate(ElementType, 1))
_UNSEEN = dict(enumerate(UnseenReason, 1))
_TAP_COUNTS = ("sent", "ok", "refused", "unknown", "dropped")  # in the order of TapLedgerCounts
BATCH_ID = "step_batch.batch_id"
_MAX_LAYERS, _MAX_WIDTH = 10_000, 65_536
_MAX_WAIT_US = 3_600_000_000
_MAX_COUNT = 1 << 53  # what a metric, a double, holds exactly; a million tokens a second reach it in 285 years


class Decoder:
    """Turns wire messages into the sidecar's nouns, within the configured limits. Stateless and shared by all threads."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self.clock = clock
        self._skew_ns = int(limits.clock_skew_s * 1e9)

    def step_batch(self, wire: ingest_pb2.StepBatch, slot: memoryview | None = None) -> StepBatch:
        """Raises Rejected with the field's path, relative to the request message. The batch id is looked at first.

        slot: the ring's slot that carried the message; without one, bytes that lie in a slot are refused.
        """
        batch_id = check_id(wire.batch_id, BATCH_ID_CHARS, BATCH_ID)
        engine_id = check_id(wire.engine_id, ENGINE_ID_CHARS, "step_batch.engine_id")
        if abs(wire.taken_ns - self.clock.unix_ns()) > self._skew_ns:
            raise Rejected(RejectReason.BAD_TIMESTAMP, "step_batch.taken_ns")
        self._check_lengths(wire)
        if wire.verdict_within_us > _MAX_WAIT_US:
            raise Rejected(RejectReason.BAD_COUNT, "step_batch.verdict_within_us")
        segments = decode_segments(wire.segments, self._limits)
        return StepBatch(
            BatchId(batch_id),
            EngineId(engine_id),
            wire.taken_ns,
            wire.plan_generation,
            wire.step,
            segments,
            _tensors(wire, segments.token_count, slot),
            _request_ids(wire.finished_request_ids, "step_batch.finished_request_ids"),
            wire.verdict_within_us / 1e6,
        )

    def finished(self, wire: ingest_pb2.RequestsFinished) -> tuple[EngineId, tuple[RequestId, ...]]:
        """Raises Rejected with the field's path."""
        if len(wire.request_ids) > self._limits.finished:
            raise Rejected(RejectReason.TOO_MANY, "finished.request_ids")
        return engine_id(wire.engine_id, "finished.engine_id"), _request_ids(wire.request_ids, "finished.request_ids")

    def _check_lengths(self, wire: ingest_pb2.StepBatch) -> None:
        if not wire.HasField("segments"):
            raise Rejected(RejectReason.MISSING, "step_batch.segments")
        if len(wire.tensors) > self._limits.tensors:
            raise Rejected(RejectReason.TOO_MANY, "step_batch.tensors")
        if len(wire.finished_request_ids) > self._limits.finished:
            raise Rejected(RejectReason.TOO_MANY, "step_batch.finished_request_ids")


def _tensors(wire: ingest_pb2.StepBatch, rows: int, slot: memoryview | None) -> tuple[TapTensor, ...]:
    tensors = tuple(_tensor(one, f"step_batch.tensors[{i}]", rows, slot) for i, one in enumerate(wire.tensors))
    seen: set[TapPoint] = set()
    for i, tensor in enumerate(tensors):
        if tensor.tap_point in seen:
            raise Rejected(RejectReason.BAD_SHAPE, f"step_batch.tensors[{i}].tap_point")
        if tensor.projected and wire.plan_generation == 0:
            raise Rejected(RejectReason.MISSING, "step_batch.plan_generation")
        seen.add(tensor.tap_point)
    return tensors


def _request_ids(values: Sequence[str], path: str) -> tuple[RequestId, ...]:
    check_ids(values, path)
    return cast("tuple[RequestId, ...]", tuple(values))


def tap_point(wire: ingest_pb2.TapPoint, path: str) -> TapPoint:
    """Raises Rejected if the site is not stated or not known, or the stack is not known."""
    site, stack = _SITES.get(wire.site), _STACKS.get(wire.stack)
    if site is None:
        raise Rejected(RejectReason.BAD_ENUM, f"{path}.site")
    if stack is None:
        raise Rejected(RejectReason.BAD_ENUM, f"{path}.stack")
    return TapPoint(wire.layer, site, stack)


def _tensor(wire: ingest_pb2.TapTensor, path: str, rows: int, slot: memoryview | None) -> TapTensor:
    where = tap_point(wire.tap_point, f"{path}.tap_point")
    dtype = _element(wire.dtype, path)
    if wire.rows != rows:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.rows")
    kind = wire.WhichOneof("payload")
    values = _matrix(wire, kind or "raw", (dtype, rows, wire.columns), path, slot)
    projected = kind in ("projected", "projected_slot")
    sample = None
    if wire.HasField("sample"):
        if not projected:
            raise Rejected(RejectReason.BAD_SHAPE, f"{path}.sample")
        sample = _sample(wire.sample, f"{path}.sample", rows, slot)
    return TapTensor(where, dtype, values, projected, sample)


def _sample(wire: ingest_pb2.RawSample, path: str, rows: int, slot: memoryview | None) -> RowSample:
    """Some rows of a projected tensor as they were before the product."""
    if not 0 < len(wire.rows) <= rows:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.rows")
    chosen = np.array(list(wire.rows), dtype=np.intp)
    if chosen[-1] >= rows or (chosen[1:] <= chosen[:-1]).any():
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.rows")
    dtype = _element(wire.dtype, path)
    kind = wire.WhichOneof("payload")
    return RowSample(chosen, dtype, _matrix(wire, kind or "raw", (dtype, len(chosen), wire.columns), path, slot))


def _element(wire: int, path: str) -> ElementType:
    dtype = _ELEMENTS.get(wire)
    if dtype is None:
        raise Rejected(RejectReason.BAD_DTYPE, f"{path}.dtype")
    return dtype


def _matrix(
    wire: ingest_pb2.TapTensor | ingest_pb2.RawSample,
    kind: str,
    shape: tuple[ElementType, int, int],
    path: str,
    slot: memoryview | None,
) -> npt.NDArray[Any]:
    """The payload as a view [rows, columns] of the bytes where they lie: in the message, or in the slot."""
    dtype, rows, columns = shape
    if not 0 < columns <= _MAX_WIDTH:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
    if not wire.HasField(kind):
        raise Rejected(RejectReason.MISSING, f"{path}.raw")
    payload = getattr(wire, kind)  # read once: every access copies the bytes
    data = _in_slot(payload, f"{path}.{kind}", slot) if isinstance(payload, ingest_pb2.SlotSpan) else payload
    if len(data) != math.prod((rows, columns, dtype.storage.itemsize)):
        raise Rejected(RejectReason.SIZE_MISMATCH, f"{path}.{kind}")
    return np.frombuffer(data, dtype=dtype.storage).reshape(rows, columns)


def _in_slot(span: ingest_pb2.SlotSpan, path: str, slot: memoryview | None) -> memoryview:
    if slot is None or span.offset % SLOT_ALIGN or span.offset + span.size > len(slot):
        raise Rejected(RejectReason.BAD_SHAPE, path)
    return slot[span.offset : span.offset + span.size]


def _unseen(wire: Sequence[ingest_pb2.Unseen], path: str) -> tuple[tuple[UnseenReason, int], ...]:
    if len(wire) > len(UnseenReason):
        raise Rejected(RejectReason.TOO_MANY, path)
    found: dict[UnseenReason, int] = {}
    for i, entry in enumerate(wire):
        reason = _UNSEEN.get(entry.reason)
        if reason is None:
            raise Rejected(RejectReason.BAD_ENUM, f"{path}[{i}].reason")
        found[reason] = found.get(reason, 0) + _count(entry.tokens, f"{path}[{i}].tokens")
    return tuple(found.items())


def _count(value: int, path: str) -> int:
    if value > _MAX_COUNT:
        raise Rejected(RejectReason.BAD_COUNT, path)
    return value


def traffic_report(wire: ingest_pb2.TrafficReport) -> TrafficReport:
    """Raises Rejected with the field's path."""
    report = TrafficReport(
        EngineId(check_id(wire.engine_id, ENGINE_ID_CHARS, "traffic.engine_id")),
        wire.step,
        _count(wire.tokens_computed, "traffic.tokens_computed"),
        _unseen(wire.unseen, "traffic.unseen"),
        _count(wire.requests, "traffic.requests"),
        TapLedgerCounts(*(_count(getattr(wire.tap, name), f"traffic.tap.{name}") for name in _TAP_COUNTS)),
        wire.encoder_tokens_computed,
        wire.encoder_tokens_left_out,
    )
    if report.encoder_computed > report.tokens_computed:
        raise Rejected(RejectReason.BAD_COUNT, "traffic.encoder_tokens_computed")
    if report.encoder_left_out > min(report.encoder_computed, dict(report.unseen).get(UnseenReason.SAMPLING, 0)):
        raise Rejected(RejectReason.BAD_COUNT, "traffic.encoder_tokens_left_out")
    return report


def engine_id(value: str, path: str) -> EngineId:
    """Raises Rejected if the id is missing or malformed."""
    return EngineId(check_id(value, ENGINE_ID_CHARS, path))


def model_identity(wire: control_pb2.ModelIdentity) -> ModelIdentity:
    """Raises Rejected with the field's path."""
    for name in ("name", "architecture"):
        if not getattr(wire, name):
            raise Rejected(RejectReason.MISSING, f"model.{name}")
    for name, least, most in (("layers", 1, _MAX_LAYERS), ("width", 1, _MAX_WIDTH), ("encoder_layers", 0, _MAX_LAYERS)):
        if not least <= getattr(wire, name) <= most:
            raise Rejected(RejectReason.BAD_COUNT, f"model.{name}")
    return ModelIdentity(
        check_fact(wire.name, "model.name"),
        check_fact(wire.architecture, "model.architecture"),
        wire.layers,
        wire.width,
        check_digest(wire.weights_digest, "model.weights_digest"),
        check_digest(wire.tokenizer_digest, "model.tokenizer_digest"),
        check_fact(wire.dtype, "model.dtype"),
        check_fact(wire.quantisation, "model.quantisation") or "none",
        check_fact(wire.engine, "model.engine"),
        check_fact(wire.engine_version, "model.engine_version"),
        wire.encoder_layers,
    )
