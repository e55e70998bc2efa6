"""Between the tap's nouns and the bytes of protos.stethoscope.v1; every method path of the service stands here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.tap.step import CapturedStep, StepSegment
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import (
    ElementType,
    ModelIdentity,
    Phase,
    SamplingPolicy,
    Site,
    TapLedgerCounts,
    TapPoint,
    UnseenReason,
)

REGISTER = "/stethoscope.v1.ControlService/Register"
STREAM = "/stethoscope.v1.IngestService/Stream"

# What a sidecar accepts by default, with room: 24 MiB, 16384 rows and 1024 segments a message, 4096 ids.
MESSAGE_BYTES = 16 << 20
MESSAGE_ROWS = 8192
MESSAGE_SEGMENTS = 1024
FINISHED_IDS = 1024
_TRACEPARENT_CHARS = 256
_LABEL_CHARS = 128

_SITE = {
    Site.RESID_POST: ingest_pb2.SITE_RESID_POST,
    Site.ATTN_HEADS: ingest_pb2.SITE_ATTN_HEADS,
    Site.MLP_OUT: ingest_pb2.SITE_MLP_OUT,
}
_SITE_OF: dict[int, Site] = {number: site for site, number in _SITE.items()}
_ELEMENT = {
    ElementType.F32: ingest_pb2.ELEMENT_TYPE_F32,
    ElementType.F16: ingest_pb2.ELEMENT_TYPE_F16,
    ElementType.BF16: ingest_pb2.ELEMENT_TYPE_BF16,
}
_UNSEEN = {
    UnseenReason.PREFIX_CACHE: ingest_pb2.UNSEEN_REASON_PREFIX_CACHE,
    UnseenReason.SAMPLING: ingest_pb2.UNSEEN_REASON_SAMPLING,
    UnseenReason.TAP_DROPPED: ingest_pb2.UNSEEN_REASON_TAP_DROPPED,
    UnseenReason.GRAPH_REPLAY: ingest_pb2.UNSEEN_REASON_GRAPH_REPLAY,
    UnseenReason.UNSUPPORTED: ingest_pb2.UNSEEN_REASON_UNSUPPORTED,
}
_PHASE = {Phase.PREFILL: ingest_pb2.PHASE_PREFILL, Phase.DECODE: ingest_pb2.PHASE_DECODE}
_NOT_A_LABEL = re.compile(r"[^A-Za-z0-9._:/@#+=~-]+")
_NOT_A_FACT = re.compile(r"[^A-Za-z0-9._:/@#+=~ -]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sidecar asks for."""

    plan_generation: int = 0
    policy: SamplingPolicy = field(default_factory=SamplingPolicy)
    tap_points: tuple[TapPoint, ...] = ()


def settings(control: ingest_pb2.Control) -> Settings:
    """Tap points at sites that this version does not know are left out: they cannot be captured."""
    wire = control.sampling
    share = min(1.0, max(0.0, wire.request_fraction))
    policy = SamplingPolicy(share, max(1, wire.token_stride), wire.first_tokens, wire.last_tokens)
    points = (TapPoint(p.layer, _SITE_OF[p.site]) for p in control.tap_points if p.site in _SITE_OF)
    return Settings(control.plan_generation, policy, tuple(points))


def register_request(
    engine_id: str,
    model: ModelIdentity,
    traffic: ingest_pb2.TrafficReport,
) -> bytes:
    identity = control_pb2.ModelIdentity(
        name=_fact(model.name),
        architecture=_fact(model.architecture),
        layers=model.layers,
        width=model.width,
        weights_digest=model.weights_digest,
        tokenizer_digest=model.tokenizer_digest,
        dtype=_fact(model.dtype),
        quantisation=_fact(model.quantisation),
        engine=_fact(model.engine),
        engine_version=_fact(model.engine_version),
    )
    return control_pb2.RegisterRequest(engine_id=engine_id, model=identity, traffic=traffic).SerializeToString()


def traffic_report(engine_id: str, counts: TrafficCounts, ledger: TapLedgerCounts) -> ingest_pb2.TrafficReport:
    return ingest_pb2.TrafficReport(
        engine_id=engine_id,
        step=counts.step,
        tokens_computed=counts.tokens_computed,
        unseen=_unseen(counts.unseen),
        requests=counts.requests,
        tap=ingest_pb2.TapLedger(
            sent=ledger.sent,
            ok=ledger.ok,
            refused=ledger.refused,
            unknown=ledger.unknown,
            dropped=ledger.dropped,
        ),
    )


def traffic_message(report: ingest_pb2.TrafficReport) -> bytes:
    return ingest_pb2.StreamRequest(traffic=report).SerializeToString()


def goodbye_message(engine_id: str) -> bytes:
    return ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id=engine_id)).SerializeToString()


def finished_messages(engine_id: str, request_ids: tuple[str, ...]) -> Iterator[bytes]:
    for start in range(0, len(request_ids), FINISHED_IDS):
        body = ingest_pb2.RequestsFinished(engine_id=engine_id, request_ids=request_ids[start : start + FINISHED_IDS])
        yield ingest_pb2.StreamRequest(finished=body).SerializeToString()


def batch_message(engine_id: str, batch_id: str, step: CapturedStep) -> bytes:
    """Copies the states: what is left of them afterwards is one bytes object."""
    batch = ingest_pb2.StepBatch(
        batch_id=batch_id,
        engine_id=engine_id,
        taken_ns=step.taken_ns,
        step=step.step,
        segments=_segments(step.segments),
    )
    for point, states in step.tensors:
        rows, columns = states.shape
        dtype, raw = states.encode()
        where = _tap_point(point)
        batch.tensors.add(tap_point=where, dtype=_ELEMENT[dtype], rows=rows, columns=columns, raw=raw)
    return ingest_pb2.StreamRequest(step_batch=batch).SerializeToString()


def parts(
    step: CapturedStep,
    max_bytes: int = MESSAGE_BYTES,
    max_rows: int = MESSAGE_ROWS,
    max_segments: int = MESSAGE_SEGMENTS,
) -> Iterator[CapturedStep]:
    """The step as it is or, if one message cannot hold it, cut between rows into several that together say the same."""
    row_bytes = max(1, -(-step.nbytes // step.tokens))
    limit = max(1, min(max_rows, max_bytes // row_bytes))
    if step.tokens <= limit and len(step.segments) <= max_segments:
        yield step
        return
    segments: list[StepSegment] = []
    start = rows = 0
    for segment in step.segments:
        offset = 0
        while offset < len(segment.positions):
            if rows == limit or len(segments) == max_segments:
                yield _part(step, segments, start, rows)
                start, rows, segments = start + rows, 0, []
            take = min(limit - rows, len(segment.positions) - offset)
            segments.append(_cut(segment, offset, take))
            rows, offset = rows + take, offset + take
    yield _part(step, segments, start, rows)


def _part(step: CapturedStep, segments: list[StepSegment], start: int, rows: int) -> CapturedStep:
    tensors = tuple((point, states.part(start, start + rows)) for point, states in step.tensors)
    nbytes = sum(states.nbytes for _, states in tensors)
    return CapturedStep(step.taken_ns, step.step, tuple(segments), tensors, rows, nbytes)


def _cut(segment: StepSegment, offset: int, take: int) -> StepSegment:
    if take == len(segment.positions):
        return segment
    return StepSegment(
        segment.info,
        segment.wire_id,
        segment.positions[offset : offset + take],
        segment.phase,
        segment.prompt_tokens,
        () if offset else segment.unseen,  # said once
    )


def _segments(segments: tuple[StepSegment, ...]) -> ingest_pb2.Segments:
    """The step's table of segments, by column; a column of facts that nobody has stays empty."""
    infos = [segment.info for segment in segments]
    wire = ingest_pb2.Segments(
        request_ids=[segment.wire_id for segment in segments],
        rows=[len(segment.positions) for segment in segments],
        phases=[_PHASE[segment.phase] for segment in segments],
        positions=[position for segment in segments for position in segment.positions],
        prompt_tokens=[segment.prompt_tokens for segment in segments],
        traceparents=_column([_header(info.traceparent) for info in infos]),
        session_id_hashes=_column([_label(info.session_id_hash) for info in infos]),
        tenants=_column([_label(info.tenant) for info in infos]),
        routes=_column([_label(info.route) for info in infos]),
        languages=_column([_label(info.language) for info in infos]),
        canaries=[info.canary for info in infos] if any(info.canary for info in infos) else [],
    )
    for index, segment in enumerate(segments):
        for reason, tokens in segment.unseen:
            wire.unseen.add(segment=index, reason=_UNSEEN[reason], tokens=tokens)
    return wire


def _column(texts: list[str]) -> list[str]:
    return texts if any(texts) else []


def _unseen(counts: Iterable[tuple[UnseenReason, int]]) -> list[ingest_pb2.Unseen]:
    return [ingest_pb2.Unseen(reason=_UNSEEN[reason], tokens=tokens) for reason, tokens in counts]


def _tap_point(point: TapPoint) -> ingest_pb2.TapPoint:
    return ingest_pb2.TapPoint(layer=point.layer, site=_SITE[point.site])


def _label(text: str) -> str:
    """One odd label must not cost its whole batch: what the sidecar would refuse is replaced."""
    return _NOT_A_LABEL.sub("_", text)[:_LABEL_CHARS] if text else ""


def _fact(text: str) -> str:
    return _NOT_A_FACT.sub("_", text)[:200]


def _header(text: str) -> str:
    """A malformed header stays malformed, so that the sidecar counts it; only its size is bounded."""
    return text[:_TRACEPARENT_CHARS].encode("utf-8", "replace").decode() if text else ""
