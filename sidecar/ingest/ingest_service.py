"""IngestService: step batches in, outcomes and verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import Clock
from sidecar.errors import DropReason, Rejected, RejectReason
from sidecar.ingest import decode, wire
from sidecar.ingest.checks import parse
from sidecar.ingest.guard import Guard
from sidecar.ingest.refusal import invalid
from sidecar.log import Level, Log
from sidecar.pipeline import NO_ID, Pipeline, Result
from sidecar.types import BatchId, EngineId, SamplingPolicy, StepBatch, TrafficReport


class IngestService:
    """Handlers of bytes. A bad batch is answered and its stream goes on; a bad message of another kind ends the stream."""

    def __init__(
        self,
        pipeline: Pipeline,
        decoder: decode.Decoder,
        sampling: SamplingPolicy,
        guard: Guard,
        clock: Clock,
        log: Log,
        drained: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._decoder = decoder
        self._sampling = sampling
        self._guard = guard
        self._clock = clock
        self._log = log
        self._drained = drained

    def observe(self, raw: bytes) -> bytes:
        received_s = self._clock.monotonic_s()
        self._pipeline.arrive()
        try:
            batch, report = self._observed(raw)
        except Rejected as rejected:
            raise invalid(self._tell(self._pipeline.reject(rejected))) from None
        except Exception:
            self._pipeline.abandon()
            raise
        try:
            made = self._tell(self._pipeline.submit(batch, received_s, report))
            if made.field:
                raise invalid(made)
            return ingest_pb2.ObserveResponse(result=wire.result(made)).SerializeToString()
        finally:
            self._settle()

    def _observed(self, raw: bytes) -> tuple[StepBatch, TrafficReport | None]:
        request = parse(ingest_pb2.ObserveRequest, raw)
        if not request.HasField("step_batch"):
            raise Rejected(RejectReason.MISSING, "step_batch")
        batch = self._decoder.step_batch(request.step_batch)
        if not request.HasField("traffic"):
            return batch, None
        report = decode.traffic_report(request.traffic)
        if report.engine_id != batch.engine_id:
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
        return batch, report

    def stream(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        session = _Session()
        told = self._control()
        yield ingest_pb2.StreamResponse(control=told).SerializeToString()
        try:
            for raw in messages:
                made = self._message(raw, session)
                if made is not None:
                    yield ingest_pb2.StreamResponse(result=wire.result(made)).SerializeToString()
                    self._settle()
                if (now := self._control()) != told:
                    told = now
                    yield ingest_pb2.StreamResponse(control=told).SerializeToString()
                if self._drained():
                    return
        finally:
            self._settle()
            if session.engine is not None:
                self._pipeline.stream_closed(session.engine, goodbye=session.goodbye)

    def _message(self, raw: bytes, session: _Session) -> Result | None:
        """The result to answer, or None for a message that is not answered."""
        received_s = self._clock.monotonic_s()
        try:
            request = parse(ingest_pb2.StreamRequest, raw)
        except Rejected as rejected:
            self._pipeline.arrive()
            return self._tell(self._pipeline.reject(rejected))
        kind = request.WhichOneof("body")
        if kind is None or kind == "step_batch":
            return self._batch(request, session, received_s)
        self._speak(request, kind, session)
        return None

    def _batch(self, request: ingest_pb2.StreamRequest, session: _Session, received_s: float) -> Result:
        self._pipeline.arrive()
        named = BatchId(request.step_batch.batch_id)
        try:
            batch = self._streamed(request, session)
        except Rejected as rejected:
            sound = rejected.field not in ("step_batch", decode.BATCH_ID)  # the first fields that are looked at
            return self._tell(self._pipeline.reject(rejected, named if sound else NO_ID))
        except Exception as bug:  # noqa: BLE001 - counted as dropped{internal}, logged; the stream goes on
            self._guard.internal(bug)
            return self._pipeline.abandon()
        return self._submit(batch, received_s)

    def _streamed(self, request: ingest_pb2.StreamRequest, session: _Session) -> StepBatch:
        if not request.HasField("step_batch"):
            raise Rejected(RejectReason.MISSING, "step_batch")
        batch = self._decoder.step_batch(request.step_batch)
        if not self._joined(session, batch.engine_id):
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "step_batch.engine_id")
        return batch

    def _submit(self, batch: StepBatch, received_s: float) -> Result:
        try:
            return self._tell(self._pipeline.submit(batch, received_s))
        except Exception as bug:  # noqa: BLE001 - booked by the pipeline as dropped{internal}; the stream goes on
            self._guard.internal(bug)
            return Result(batch.batch_id, False, DropReason.INTERNAL)

    def _tell(self, made: Result) -> Result:
        """Log a refusal: whoever is called because batches are missing finds the field that is wrong here."""
        if made.field and made.reason is not None:
            self._log.event(Level.WARNING, "batch_rejected", reason=made.reason.value, field=made.field)
        return made

    def _settle(self) -> None:
        try:
            self._pipeline.settle()
        except Exception as bug:  # noqa: BLE001 - logged; the batch has its outcome and its answer stands
            self._guard.internal(bug)

    def _speak(self, request: ingest_pb2.StreamRequest, kind: str, session: _Session) -> None:
        """What is not a batch is not booked and not answered: if it is wrong, the stream ends, for its client must be mended."""
        try:
            if kind == "traffic":
                report = decode.traffic_report(request.traffic)
                self._own(session, report.engine_id, "traffic.engine_id")
                self._pipeline.report(report)
            elif kind == "finished":
                engine, requests = self._decoder.finished(request.finished)
                self._own(session, engine, "finished.engine_id")
                self._pipeline.finished(engine, requests)
            else:
                engine = decode.engine_id(request.goodbye.engine_id, "goodbye.engine_id")
                self._own(session, engine, "goodbye.engine_id")
                session.goodbye = True
        except Rejected as rejected:
            raise invalid(rejected) from None

    def _own(self, session: _Session, engine: EngineId, field: str) -> None:
        if not self._joined(session, engine):
            raise Rejected(RejectReason.UNKNOWN_ENGINE, field)

    def _joined(self, session: _Session, engine: EngineId) -> bool:
        """Whether the engine may speak here: a stream belongs to the registered engine that spoke first on it."""
        if session.engine is None and self._pipeline.stream_opened(engine):
            session.engine = engine
        return session.engine is None or session.engine == engine

    def _control(self) -> ingest_pb2.Control:
        return wire.control(self._pipeline.plan, self._sampling)


@dataclass(slots=True)
class _Session:
    """Who speaks on one stream."""

    engine: EngineId | None = None
    goodbye: bool = False
