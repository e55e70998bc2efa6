"""One peer's messages, taken from its ring: what was decoded goes through the pipeline, what comes back is the reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import Clock
from sidecar.errors import DropReason, Rejected, RejectReason
from sidecar.ingest import decode, wire
from sidecar.ingest.checks import parse
from sidecar.ingest.refusal import Refusal, invalid
from sidecar.log import Level, Log
from sidecar.outcome import NO_ID, Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.ring import Kind, Taken
from sidecar.types import BatchId, EngineId, StepBatch, TrafficReport


@dataclass(frozen=True, slots=True)
class Peer:
    """What every session works with."""

    pipeline: Pipeline
    decoder: decode.Decoder
    clock: Clock
    log: Log
    bug: Callable[[Exception], Refusal]  # logs it under a random id


class Session:
    """A stream and the engine that speaks on it. Raises Refusal for what must end the stream: its client must be mended."""

    def __init__(self, peer: Peer, reply_bytes: int) -> None:
        self._peer = peer
        self._reply_bytes = reply_bytes
        self._pipeline = peer.pipeline
        self.engine: EngineId | None = None
        self._goodbye = False

    def handle(self, taken: Taken) -> bytes:
        """The reply to a message, empty for one that is not answered. Only batches are answered and booked."""
        if taken.kind == Kind.CLOSED:
            self.end()
            return b""
        arrival = Arrival(taken.posted_s, self._peer.clock.monotonic_s())
        if taken.kind == Kind.OBSERVE:
            return self._observe(taken, arrival)
        return self._message(taken, arrival)

    def end(self) -> None:
        """The stream is over. Twice is fine; a session may begin anew, for a ring that serves one stream after another."""
        if self.engine is not None:
            self._pipeline.stream_closed(self.engine, goodbye=self._goodbye)
        self.engine, self._goodbye = None, False

    # a call of its own

    def _observe(self, taken: Taken, arrival: Arrival) -> bytes:
        self._pipeline.arrive()
        try:
            batch, report = self._observed(taken)
        except Rejected as rejected:
            raise invalid(self._tell(self._pipeline.reject(rejected))) from None
        except Exception as bug:  # noqa: BLE001 - counted as dropped{internal}, logged, never echoed
            self._pipeline.abandon()
            raise self._peer.bug(bug) from None
        try:
            made = self._tell(self._pipeline.submit(batch, arrival, report))
        except Exception as bug:  # noqa: BLE001 - booked by the pipeline as dropped{internal}
            raise self._peer.bug(bug) from None
        if made.field:
            raise invalid(made)
        return self._fitted(ingest_pb2.ObserveResponse(result=wire.result(made)))

    def _observed(self, taken: Taken) -> tuple[StepBatch, TrafficReport | None]:
        request = parse(ingest_pb2.ObserveRequest, taken.message)
        if not request.HasField("step_batch"):
            raise Rejected(RejectReason.MISSING, "step_batch")
        batch = self._peer.decoder.step_batch(request.step_batch)
        if not request.HasField("traffic"):
            return batch, None
        report = decode.traffic_report(request.traffic)
        if report.engine_id != batch.engine_id:
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
        return batch, report

    # a message of a stream

    def _message(self, taken: Taken, arrival: Arrival) -> bytes:
        try:
            request = parse(ingest_pb2.StreamRequest, taken.message)
        except Rejected as rejected:
            self._pipeline.arrive()
            return self._answer(self._tell(self._pipeline.reject(rejected)))
        kind = request.WhichOneof("body")
        if kind is None or kind == "step_batch":
            return self._answer(self._batch(request, taken, arrival))
        self._speak(request, kind)
        return b""

    def _answer(self, made: Result) -> bytes:
        return self._fitted(ingest_pb2.StreamResponse(result=wire.result(made)))

    def _fitted(self, reply: ingest_pb2.ObserveResponse | ingest_pb2.StreamResponse) -> bytes:
        """The reply's bytes. One that its slot cannot hold keeps the actions and loses the names of signals; then the rest."""
        if reply.ByteSize() > self._reply_bytes:
            self._peer.log.event(Level.WARNING, "reply_cut", bytes=reply.ByteSize())
            wire.without_signals(reply.result)
        if reply.ByteSize() > self._reply_bytes:
            reply.result.ClearField("verdicts")
        return reply.SerializeToString()

    def _batch(self, request: ingest_pb2.StreamRequest, taken: Taken, arrival: Arrival) -> Result:
        self._pipeline.arrive()
        named = BatchId(request.step_batch.batch_id)
        try:
            batch = self._streamed(request, taken)
        except Rejected as rejected:
            sound = rejected.field not in ("step_batch", decode.BATCH_ID)  # the first fields that are looked at
            return self._tell(self._pipeline.reject(rejected, named if sound else NO_ID))
        except Exception as bug:  # noqa: BLE001 - counted as dropped{internal}, logged; the stream goes on
            self._peer.bug(bug)
            return self._pipeline.abandon()
        try:
            return self._tell(self._pipeline.submit(batch, arrival))
        except Exception as bug:  # noqa: BLE001 - booked by the pipeline as dropped{internal}; the stream goes on
            self._peer.bug(bug)
            return Result(batch.batch_id, False, DropReason.INTERNAL)

    def _streamed(self, request: ingest_pb2.StreamRequest, taken: Taken) -> StepBatch:
        if not request.HasField("step_batch"):
            raise Rejected(RejectReason.MISSING, "step_batch")
        slot = taken.slot if len(taken.slot) > len(taken.message) else None
        batch = self._peer.decoder.step_batch(request.step_batch, slot)
        if not self._joined(batch.engine_id):
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "step_batch.engine_id")
        return batch

    def _tell(self, made: Result) -> Result:
        """Log a refusal: whoever is called because batches are missing finds the field that is wrong here."""
        if made.field and made.reason is not None:
            self._peer.log.event(Level.WARNING, "batch_rejected", reason=made.reason.value, field=made.field)
        return made

    def _speak(self, request: ingest_pb2.StreamRequest, kind: str) -> None:
        """What is not a batch is not booked and not answered: if it is wrong, the stream ends."""
        try:
            if kind == "traffic":
                report = decode.traffic_report(request.traffic)
                self._own(report.engine_id, "traffic.engine_id")
                self._pipeline.report(report)
            elif kind == "finished":
                engine, requests = self._peer.decoder.finished(request.finished)
                self._own(engine, "finished.engine_id")
                self._pipeline.finished(engine, requests)
            else:
                engine = decode.engine_id(request.goodbye.engine_id, "goodbye.engine_id")
                self._own(engine, "goodbye.engine_id")
                self._goodbye = True
        except Rejected as rejected:
            raise invalid(rejected) from None

    def _own(self, engine: EngineId, field: str) -> None:
        if not self._joined(engine):
            raise Rejected(RejectReason.UNKNOWN_ENGINE, field)

    def _joined(self, engine: EngineId) -> bool:
        """Whether the engine may speak here: a stream belongs to the registered engine that spoke first on it."""
        if self.engine is None and self._pipeline.stream_opened(engine):
            self.engine = engine
        return self.engine is None or self.engine == engine
