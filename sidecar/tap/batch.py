"""Step batches on their way out: cut to what a message holds, and written inline or into the slot of a ring."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from protos.stethoscope.v1 import ingest_pb2
from sidecar.ring import aligned
from sidecar.tap.step import CapturedStep, Sample, States, StepSegment, payload_bytes
from sidecar.tap.wire import UNSEEN, tap_point
from sidecar.types import ElementType, Medium, Phase

# What a sidecar accepts by default, with room: 24 MiB, 16384 rows and 1024 segments a message.
MESSAGE_BYTES = 16 << 20
MESSAGE_ROWS = 8192
MESSAGE_SEGMENTS = 1024
# Of everything beside the tensors: 1024 segments of full ids, headers and labels are 1.3 MiB, 8192 positions 40 KiB.
ENVELOPE_BYTES = 2 << 20
_TRACEPARENT_CHARS = 256
_LABEL_CHARS = 128
_ELEMENT = {
    ElementType.F32: ingest_pb2.ELEMENT_TYPE_F32,
    ElementType.F16: ingest_pb2.ELEMENT_TYPE_F16,
    ElementType.BF16: ingest_pb2.ELEMENT_TYPE_BF16,
}
_Holder: TypeAlias = ingest_pb2.TapTensor | ingest_pb2.RawSample
_PHASE = {
    Phase.PREFILL: ingest_pb2.PHASE_PREFILL,
    Phase.DECODE: ingest_pb2.PHASE_DECODE,
    Phase.ENCODER: ingest_pb2.PHASE_ENCODER,
    Phase.TIMESTEP: ingest_pb2.PHASE_TIMESTEP,
}
_MEDIUM = {
    Medium.IMAGE: ingest_pb2.MEDIUM_IMAGE,
    Medium.VIDEO: ingest_pb2.MEDIUM_VIDEO,
    Medium.AUDIO: ingest_pb2.MEDIUM_AUDIO,
}
_NOT_A_LABEL = re.compile(r"[^A-Za-z0-9._:/@#+=~-]+")


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """One step, or a part of one, as a StreamRequest."""

    engine_id: str
    batch_id: str
    step: CapturedStep

    def inline(self) -> bytes:
        """Everything in one piece."""
        request = self._head()
        for states, holder, field in _load(request.step_batch, self.step):
            setattr(holder, field, _bytes_of(states))
        return request.SerializeToString()

    def write(self, slot: memoryview) -> tuple[int, int]:
        """Into the payload of a slot: the message, and behind it, in place, the tensors that it names.

        Returns the sizes of the message alone and of all. Raises ValueError if the slot is too small.
        """
        request = self._head()
        load = [(states, _span(holder, field)) for states, holder, field in _load(request.step_batch, self.step)]
        for states, span in load:
            span.offset, span.size = len(slot), payload_bytes(states)  # no offset is wider: the message can only shrink
        at = aligned(request.ByteSize())
        for _, span in load:
            span.offset, at = at, aligned(at + span.size)
        if at > len(slot):
            raise ValueError("a message that is larger than its slot")
        message = request.SerializeToString()
        slot[: len(message)] = message
        for states, span in load:
            states.write(slot[span.offset : span.offset + span.size])
        return len(message), at

    def _head(self) -> ingest_pb2.StreamRequest:
        request = ingest_pb2.StreamRequest()
        batch = request.step_batch  # filled where it is: a message that is put into another is copied
        batch.batch_id, batch.engine_id = self.batch_id, self.engine_id
        batch.taken_ns, batch.step = self.step.taken_ns, self.step.step
        batch.plan_generation = self.step.plan_generation
        _fill(batch.segments, self.step.segments)
        return request


@dataclass(frozen=True, slots=True)
class PlainMessage:
    """A StreamRequest without tensors."""

    raw: bytes

    def inline(self) -> bytes:
        return self.raw

    def write(self, slot: memoryview) -> tuple[int, int]:
        slot[: len(self.raw)] = self.raw
        return len(self.raw), len(self.raw)


def inlined(message: memoryview, slot: memoryview) -> bytes:
    """What lies in a slot, as one piece. Raises DecodeError if it is no StreamRequest."""
    request = ingest_pb2.StreamRequest.FromString(bytes(message))
    for tensor in request.step_batch.tensors:
        for holder in (tensor, tensor.sample) if tensor.HasField("sample") else (tensor,):
            field = (holder.WhichOneof("payload") or "").removesuffix("_slot")
            if field:
                span = _span(holder, field)
                setattr(holder, field, bytes(slot[span.offset : span.offset + span.size]))
    return request.SerializeToString()


def parts(
    step: CapturedStep,
    max_bytes: int = MESSAGE_BYTES,
    max_rows: int = MESSAGE_ROWS,
    max_segments: int = MESSAGE_SEGMENTS,
) -> Iterator[CapturedStep]:
    """The step as it is or, if one message cannot hold it, cut between rows into several that together say the same.

    max_bytes: of the tensors, with their samples; a part has one row at least. A sample goes with the part that has its rows.
    """
    payload, nbytes = sum(payload_bytes(states) for _, states in step.tensors), step.nbytes
    row_bytes = max(1, -(-payload // step.tokens))
    samples = nbytes - payload  # which one part may have whole
    limit = max(1, min(max_rows, (max_bytes - samples) // row_bytes))
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
    return replace(step, segments=tuple(segments), tensors=tensors, tokens=rows)


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
        segment.media,
    )


def _fill(wire: ingest_pb2.Segments, segments: tuple[StepSegment, ...]) -> None:
    """The step's table of segments, by column; a column of facts that nobody has stays empty."""
    infos = [segment.info for segment in segments]
    wire.request_ids.extend([segment.wire_id for segment in segments])
    wire.rows.extend([len(segment.positions) for segment in segments])
    wire.phases.extend([_PHASE[segment.phase] for segment in segments])
    wire.positions.extend([position for segment in segments for position in segment.positions])
    wire.prompt_tokens.extend([segment.prompt_tokens for segment in segments])
    wire.traceparents.extend(_column(_header, [info.traceparent for info in infos]))
    wire.session_id_hashes.extend(_column(_label, [info.session_id_hash for info in infos]))
    wire.tenants.extend(_column(_label, [info.tenant for info in infos]))
    wire.routes.extend(_column(_label, [info.route for info in infos]))
    wire.languages.extend(_column(_label, [info.language for info in infos]))
    wire.adapters.extend(_column(_label, [info.adapter for info in infos]))
    canaries = [info.canary for info in infos]
    wire.canaries.extend(canaries if any(canaries) else [])
    for index, segment in enumerate(segments):
        for reason, tokens in segment.unseen:
            wire.unseen.add(segment=index, reason=UNSEEN[reason], tokens=tokens)
        for span in segment.media_here():
            wire.media.add(segment=index, medium=_MEDIUM[span.medium], position=span.position, tokens=span.tokens)


def _column(clean: Callable[[str], str], texts: list[str]) -> list[str]:
    return [clean(text) for text in texts] if any(texts) else []


def _label(text: str) -> str:
    """One odd label must not cost its whole batch: what the sidecar would refuse is replaced."""
    return _NOT_A_LABEL.sub("_", text)[:_LABEL_CHARS]


def _header(text: str) -> str:
    """A malformed header stays malformed, so that the sidecar counts it; only its size is bounded."""
    return text[:_TRACEPARENT_CHARS].encode("utf-8", "replace").decode()


def _load(batch: ingest_pb2.StepBatch, step: CapturedStep) -> Iterator[tuple[States, _Holder, str]]:
    """Describe every tensor in the batch; yields whose bytes belong into which field of which message."""
    for point, states in step.tensors:
        rows, columns = states.shape
        tensor = batch.tensors.add(tap_point=tap_point(point), dtype=_ELEMENT[states.dtype], rows=rows, columns=columns)
        yield states, tensor, "projected" if states.projected else "raw"
        if states.sample is not None:
            _describe(tensor.sample, states.sample)
            yield states.sample.states, tensor.sample, "raw"


def _describe(wire: ingest_pb2.RawSample, sample: Sample) -> None:
    wire.rows.extend(sample.rows)
    wire.dtype = _ELEMENT[sample.states.dtype]
    wire.columns = sample.states.shape[1]


def _span(holder: _Holder, field: str) -> ingest_pb2.SlotSpan:
    span: ingest_pb2.SlotSpan = getattr(holder, f"{field}_slot")
    return span


def _bytes_of(states: States) -> bytes:
    """What the states write. BytesIO gives out the buffer that they wrote to; a bytearray would have to be copied."""
    size = payload_bytes(states)
    buffer = io.BytesIO()
    buffer.truncate(size)
    buffer.seek(max(0, size - 1))
    buffer.write(b"\0" * min(1, size))
    with buffer.getbuffer() as view:
        states.write(view)
    return buffer.getvalue()
