"""Bytes to StepBatch, or a refusal that names the field. Sizes are checked before anything of that size is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError, Message

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.clock import Clock
from sidecar.config import Limits
from sidecar.errors import Rejected, RejectReason
from sidecar.ingest.traceparent import parse_traceparent
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    ModelIdentity,
    Phase,
    PositionArray,
    RequestId,
    Segment,
    Site,
    StepBatch,
    TapLedgerCounts,
    TapPoint,
    TapTensor,
    TraceParent,
    TrafficReport,
    UnseenReason,
)

if TYPE_CHECKING:
    from typing import TypeVar

    M = TypeVar("M", bound=Message)

_ID = re.compile(r"[A-Za-z0-9._:/@#+=~-]+")
_BATCH_ID_CHARS, _ENGINE_ID_CHARS, _REQUEST_ID_CHARS, _LABEL_CHARS, _FACT_CHARS = 64, 128, 256, 128, 200
_SITES, _PHASES = dict(enumerate(Site, 1)), {phase.value: phase for phase in Phase}
_ELEMENTS, _UNSEEN = dict(enumerate(ElementType, 1)), dict(enumerate(UnseenReason, 1))
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")
_FACT = re.compile(r"[A-Za-z0-9._:/@#+=~ -]*")
_MAX_LAYERS, _MAX_WIDTH = 10_000, 65_536


def parse(make: Callable[[], M], raw: bytes) -> M:
    """Raises Rejected(malformed, "$") if the bytes are no such message. Unknown fields are ignored."""
    message = make()
    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError, ValueError):
        raise Rejected(RejectReason.MALFORMED, "$") from None
    return message


def check_id(value: str, limit: int, field: str) -> str:
    """Raises Rejected if the id is empty, too long, or has a character that an id cannot have."""
    if not value:
        raise Rejected(RejectReason.MISSING, field)
    if len(value) > limit or _ID.fullmatch(value) is None:
        raise Rejected(RejectReason.BAD_TEXT, field)
    return value


def check_label(value: str, field: str) -> str:
    """Like ``check_id``, but may be empty."""
    return check_id(value, _LABEL_CHARS, field) if value else ""


class Decoder:
    """Turns wire messages into the sidecar's nouns, within the configured limits. Stateless and shared by all threads."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._skew_ns = int(limits.clock_skew_s * 1e9)

    def step_batch(self, wire: ingest_pb2.StepBatch) -> StepBatch:
        """Raises Rejected with the field's path, relative to the request message."""
        batch_id = check_id(wire.batch_id, _BATCH_ID_CHARS, "step_batch.batch_id")
        engine_id = check_id(wire.engine_id, _ENGINE_ID_CHARS, "step_batch.engine_id")
        if abs(wire.taken_ns - self._clock.unix_ns()) > self._skew_ns:
            raise Rejected(RejectReason.BAD_TIMESTAMP, "step_batch.taken_ns")
        self._check_lengths(wire)
        segments, ignored = self._segments(wire)
        tensors = self._tensors(wire, segments[-1].stop)
        finished = _request_ids(wire.finished_request_ids, "step_batch.finished_request_ids")
        return StepBatch(
            BatchId(batch_id),
            EngineId(engine_id),
            wire.taken_ns,
            wire.plan_generation,
            wire.step,
            segments,
            tensors,
            finished,
            ignored,
        )

    def finished(self, wire: ingest_pb2.RequestsFinished) -> tuple[EngineId, tuple[RequestId, ...]]:
        """Raises Rejected with the field's path."""
        if len(wire.request_ids) > self._limits.finished:
            raise Rejected(RejectReason.TOO_MANY, "finished.request_ids")
        return engine_id(wire.engine_id, "finished.engine_id"), _request_ids(wire.request_ids, "finished.request_ids")

    def _check_lengths(self, wire: ingest_pb2.StepBatch) -> None:
        if not wire.segments:
            raise Rejected(RejectReason.MISSING, "step_batch.segments")
        for field, length, limit in (
            ("segments", len(wire.segments), self._limits.segments),
            ("tensors", len(wire.tensors), self._limits.tensors),
            ("finished_request_ids", len(wire.finished_request_ids), self._limits.finished),
        ):
            if length > limit:
                raise Rejected(RejectReason.TOO_MANY, f"step_batch.{field}")

    def _segments(self, wire: ingest_pb2.StepBatch) -> tuple[tuple[Segment, ...], int]:
        segments: list[Segment] = []
        seen: set[str] = set()
        start = ignored = 0
        for i, one in enumerate(wire.segments):
            path = f"step_batch.segments[{i}]"
            count = len(one.positions)
            if start + count > self._limits.rows:
                raise Rejected(RejectReason.TOO_MANY, f"{path}.positions")
            segment = self._segment(one, path, start, start + count)
            if segment.request_id in seen:
                raise Rejected(RejectReason.TOO_MANY, f"{path}.request_id")
            seen.add(segment.request_id)
            ignored += segment.traceparent is None and bool(one.traceparent)
            segments.append(segment)
            start += count
        return tuple(segments), ignored

    def _segment(self, wire: ingest_pb2.Segment, path: str, start: int, stop: int) -> Segment:
        phase = _PHASES.get(wire.phase)
        if phase is None:
            raise Rejected(RejectReason.BAD_ENUM, f"{path}.phase")
        parent: TraceParent | None = None
        if wire.traceparent:
            parent = parse_traceparent(wire.traceparent, wire.tracestate)
        return Segment(
            RequestId(check_id(wire.request_id, _REQUEST_ID_CHARS, f"{path}.request_id")),
            start,
            stop,
            _positions(wire, f"{path}.positions"),
            phase,
            check_label(wire.session_id_hash, f"{path}.session_id_hash"),
            check_label(wire.tenant, f"{path}.tenant"),
            check_label(wire.route, f"{path}.route"),
            check_label(wire.language, f"{path}.language"),
            wire.canary,
            unseen(wire.unseen, path),
            parent,
            wire.prompt_tokens,
        )

    def _tensors(self, wire: ingest_pb2.StepBatch, rows: int) -> tuple[TapTensor, ...]:
        tensors = tuple(_tensor(one, f"step_batch.tensors[{i}]", rows) for i, one in enumerate(wire.tensors))
        seen: set[TapPoint] = set()
        for i, tensor in enumerate(tensors):
            if tensor.tap_point in seen:
                raise Rejected(RejectReason.TOO_MANY, f"step_batch.tensors[{i}].tap_point")
            if tensor.projected and wire.plan_generation == 0:
                raise Rejected(RejectReason.MISSING, "step_batch.plan_generation")
            seen.add(tensor.tap_point)
        return tensors


def _request_ids(values: Iterable[str], path: str) -> tuple[RequestId, ...]:
    return tuple(RequestId(check_id(value, _REQUEST_ID_CHARS, f"{path}[{i}]")) for i, value in enumerate(values))


def _positions(wire: ingest_pb2.Segment, path: str) -> PositionArray:
    positions = np.array(wire.positions, dtype=np.uint32)
    if positions.size == 0:
        raise Rejected(RejectReason.MISSING, path)
    if positions.size > 1 and not bool(np.all(positions[1:] > positions[:-1])):
        raise Rejected(RejectReason.BAD_POSITIONS, path)
    return positions


def tap_point(wire: ingest_pb2.TapPoint, path: str) -> TapPoint:
    """Raises Rejected if the site is not stated or not known."""
    site = _SITES.get(wire.site)
    if site is None:
        raise Rejected(RejectReason.BAD_ENUM, f"{path}.site")
    return TapPoint(wire.layer, site)


def _tensor(wire: ingest_pb2.TapTensor, path: str, rows: int) -> TapTensor:
    where = tap_point(wire.tap_point, f"{path}.tap_point")
    dtype = _ELEMENTS.get(wire.dtype)
    if dtype is None:
        raise Rejected(RejectReason.BAD_DTYPE, f"{path}.dtype")
    if wire.rows != rows:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.rows")
    if not 0 < wire.columns <= _MAX_WIDTH:
        raise Rejected(RejectReason.BAD_SHAPE, f"{path}.columns")
    kind = wire.WhichOneof("payload")
    if kind is None:
        raise Rejected(RejectReason.MISSING, f"{path}.raw")
    data: bytes = wire.raw if kind == "raw" else wire.projected  # read once: every access copies the bytes
    if len(data) != math.prod((wire.rows, wire.columns, dtype.storage.itemsize)):
        raise Rejected(RejectReason.SIZE_MISMATCH, f"{path}.{kind}")
    values = np.frombuffer(data, dtype=dtype.storage).reshape(rows, wire.columns)
    return TapTensor(where, dtype, values, kind == "projected")


def unseen(wire: object, path: str) -> tuple[tuple[UnseenReason, int], ...]:
    """The unseen counts of a segment or a traffic report."""
    entries = list(wire)  # type: ignore[call-overload]
    if len(entries) > len(UnseenReason):
        raise Rejected(RejectReason.TOO_MANY, f"{path}.unseen")
    found = []
    for i, entry in enumerate(entries):
        reason = _UNSEEN.get(entry.reason)
        if reason is None:
            raise Rejected(RejectReason.BAD_ENUM, f"{path}.unseen[{i}].reason")
        found.append((reason, entry.tokens))
    return tuple(found)


def traffic_report(wire: ingest_pb2.TrafficReport) -> TrafficReport:
    """Raises Rejected with the field's path."""
    tap = wire.tap
    return TrafficReport(
        EngineId(check_id(wire.engine_id, _ENGINE_ID_CHARS, "traffic.engine_id")),
        wire.step,
        wire.tokens_computed,
        unseen(wire.unseen, "traffic"),
        wire.requests,
        TapLedgerCounts(tap.sent, tap.ok, tap.refused, tap.unknown, tap.dropped),
    )


def engine_id(value: str, path: str) -> EngineId:
    """Raises Rejected if the id is missing or malformed."""
    return EngineId(check_id(value, _ENGINE_ID_CHARS, path))


def model_identity(wire: control_pb2.ModelIdentity) -> ModelIdentity:
    """Raises Rejected with the field's path."""
    for name in ("name", "architecture", "dtype", "quantisation", "engine", "engine_version"):
        value = getattr(wire, name)
        if not value and name in ("name", "architecture"):
            raise Rejected(RejectReason.MISSING, f"model.{name}")
        if len(value) > _FACT_CHARS or _FACT.fullmatch(value) is None:
            raise Rejected(RejectReason.BAD_TEXT, f"model.{name}")
    for name in ("weights_digest", "tokenizer_digest"):
        if _DIGEST.fullmatch(getattr(wire, name)) is None:
            raise Rejected(RejectReason.BAD_TEXT, f"model.{name}")
    for name, limit in (("layers", _MAX_LAYERS), ("width", _MAX_WIDTH)):
        if not 0 < getattr(wire, name) <= limit:
            raise Rejected(RejectReason.BAD_COUNT, f"model.{name}")
    return ModelIdentity(
        wire.name,
        wire.architecture,
        wire.layers,
        wire.width,
        wire.weights_digest,
        wire.tokenizer_digest,
        wire.dtype,
        wire.quantisation or "none",
        wire.engine,
        wire.engine_version,
    )
