"""What an engine's tap speaks with, in place of a sidecar: it is asked for every row, and its batches go to the recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import code_pb2

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.address import CONTROL, INGEST
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import OtherModelError, Rejected, RejectReason
from sidecar.ingest import decode, wire
from sidecar.ingest.bugs import bug_teller
from sidecar.ingest.checks import parse
from sidecar.ingest.control_service import registration
from sidecar.ingest.endpoint import Endpoint
from sidecar.ingest.guard import Guard
from sidecar.ingest.refusal import Refusal, invalid
from sidecar.log import Level, Log
from sidecar.record.recording import Recording
from sidecar.types import EngineId, UnseenReason

_REASONS = dict(enumerate(UnseenReason, 1))


class RecordServer:
    """IngestService's stream and registration on one address; everything goes by gRPC, for no ring is offered."""

    def __init__(self, config: Config, recording: Recording, clock: Clock, log: Log) -> None:
        # A tap's stream does not end by itself, and what is not settled by the time that we stop is not wanted any more.
        self._endpoint = Endpoint(config.listen.model_copy(update={"drain_s": 0.0}))
        self._recording = recording
        self._decoder = decode.Decoder(config.limits, clock)
        self._log = log
        self._guard = Guard(bug_teller(log))

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._endpoint.address

    def start(self) -> None:
        """Raises ConfigError if the address cannot be had."""
        handlers = (
            (INGEST, {"Stream": self._guard.stream(self._stream)}),
            (CONTROL, {"Register": self._guard.unary(self._register)}),
        )
        self._endpoint.bind(grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers)
        self._endpoint.start()

    def stop(self) -> None:
        """Twice is fine."""
        self._endpoint.stop()

    # calls

    def _register(self, raw: bytes, _: object) -> bytes:
        try:
            engine, model, _report = registration(raw)
        except Rejected as rejected:
            raise invalid(rejected) from None
        try:
            self._recording.register(engine, model)
        except OtherModelError:
            self._log.event(Level.WARNING, "engine_refused", engine_id=engine, why="its states are of something else")
            raise Refusal(code_pb2.FAILED_PRECONDITION, "what is recorded here is of another model") from None
        self._log.event(Level.INFO, "engine_registered", engine_id=engine, model=model.name, engine=model.engine)
        return control_pb2.RegisterResponse(control=self._control()).SerializeToString()

    def _control(self) -> ingest_pb2.Control:
        """Everything, as it is, at the tap points that were asked for."""
        return ingest_pb2.Control(
            sampling=ingest_pb2.SamplingPolicy(request_fraction=1.0, token_stride=1),
            tap_points=[wire.tap_point(point) for point in self._recording.points],
            mode=ingest_pb2.CAPTURE_MODE_RAW,
        )

    def _stream(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        yield ingest_pb2.StreamResponse(control=self._control()).SerializeToString()
        session = _Session(self._recording, self._decoder, self._log)
        try:
            for raw in messages:
                answer = session.handle(raw)
                if answer is not None:
                    yield ingest_pb2.StreamResponse(result=answer).SerializeToString()
        except grpc.RpcError:  # the engine is gone: there is nobody to tell
            return
        finally:
            session.end()


class _Session:
    """One stream, and the engine that spoke first on it."""

    def __init__(self, recording: Recording, decoder: decode.Decoder, log: Log) -> None:
        self._recording, self._decoder, self._log = recording, decoder, log
        self._engine: EngineId | None = None

    def handle(self, raw: bytes) -> ingest_pb2.StepResult | None:
        """The answer to a message; only batches have one. Raises Refusal."""
        try:
            return self._spoken(parse(ingest_pb2.StreamRequest, raw))
        except Rejected as rejected:
            self._log.event(Level.WARNING, "message_refused", reason=rejected.reason.value, field=rejected.field)
            raise invalid(rejected) from None

    def end(self) -> None:
        """The stream is over."""
        if self._engine is not None:
            self._recording.closed(self._engine)

    def _spoken(self, said: ingest_pb2.StreamRequest) -> ingest_pb2.StepResult | None:
        kind = said.WhichOneof("body")
        if kind == "step_batch":
            batch = self._decoder.step_batch(said.step_batch)
            self._own(batch.engine_id)
            self._recording.batch(batch, _unseen(said.step_batch.segments.unseen))
            return ingest_pb2.StepResult(batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED)
        if kind == "traffic":
            report = decode.traffic_report(said.traffic)
            self._own(report.engine_id)
            self._recording.report(report)
        elif kind == "finished":
            engine, requests = self._decoder.finished(said.finished)
            self._own(engine)
            self._recording.finished(engine, requests)
        return None

    def _own(self, engine: EngineId) -> None:
        """A stream belongs to the registered engine that spoke first on it."""
        if self._engine is None and self._recording.opened(engine):
            self._engine = engine
        if self._engine != engine:
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "engine_id")


def _unseen(entries: Any) -> dict[int, dict[UnseenReason, int]]:
    """By segment, what has no rows before it and why; the decoder has found every entry sound."""
    told: dict[int, dict[UnseenReason, int]] = {}
    for entry in entries:
        of_segment = told.setdefault(entry.segment, {})
        reason = _REASONS[entry.reason]
        of_segment[reason] = of_segment.get(reason, 0) + entry.tokens
    return told
