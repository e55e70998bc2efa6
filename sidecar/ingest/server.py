"""gRPC in front of the pipeline: bytes in, parsed here, so that every refusal is ours, named and counted."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.clock import Clock
from sidecar.config import Listen
from sidecar.errors import ConfigError, Rejected, RejectReason
from sidecar.ingest import decode, wire
from sidecar.ingest.checks import parse
from sidecar.ingest.socket import SocketClaim
from sidecar.log import Level, Log
from sidecar.pipeline import OtherModelError, Pipeline, Result, TooManyEnginesError
from sidecar.types import EngineId, SamplingPolicy, TapLedgerCounts, TrafficReport

INGEST, CONTROL = "stethoscope.v1.IngestService", "stethoscope.v1.ControlService"
_SPARE_THREADS = 8  # for status, health and registration while every stream is taken


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """Ends a call with a status whose text is fixed."""

    code: int
    text: str
    field: str = ""

    def status(self) -> Any:
        made = status_pb2.Status(code=self.code, message=self.text)
        if self.field:
            bad = error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.text)]
            )
            packed = any_pb2.Any()
            packed.Pack(bad)
            made.details.append(packed)
        return rpc_status.to_status(made)


def _invalid(rejected: Rejected | Result) -> _Refusal:
    reason = "rejected" if rejected.reason is None else rejected.reason.value
    return _Refusal(code_pb2.INVALID_ARGUMENT, reason, rejected.field)


class IngestServer:
    """Serves IngestService, ControlService and health on one address. ``start`` raises ConfigError if it cannot."""

    def __init__(
        self,
        config: Listen,
        pipeline: Pipeline,
        decoder: decode.Decoder,
        sampling: SamplingPolicy,
        status: Callable[[], control_pb2.GetStatusResponse],
        clock: Clock,
        log: Log,
    ) -> None:
        self._config = config
        self._pipeline = pipeline
        self._decoder = decoder
        self._sampling = sampling
        self._status = status
        self._clock = clock
        self._log = log
        self._health = health.HealthServicer()
        self._server: grpc.Server | None = None
        self._claim: SocketClaim | None = None
        self._draining = False
        self.address = config.address

    # life

    def start(self) -> None:
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._config.max_message_bytes),
            ("grpc.max_concurrent_streams", self._config.max_streams),
        ]
        workers = self._config.max_streams + _SPARE_THREADS
        server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix="ingest"),
            options=options,
            maximum_concurrent_rpcs=workers,
        )
        server.add_generic_rpc_handlers(self._handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._config.reflection:
            reflection.enable_server_reflection((INGEST, CONTROL, reflection.SERVICE_NAME), server)
        self._bind(server)
        server.start()
        self._server = server
        for service in ("", INGEST, CONTROL):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def _bind(self, server: grpc.Server) -> None:
        path = self._config.address.removeprefix("unix:") if self._config.address.startswith("unix:") else None
        if path is not None:
            self._claim = SocketClaim(Path(path))
            self._claim.take()
        mask = os.umask(0o177)  # the socket is never, not for a moment, open to others
        try:
            port = server.add_insecure_port(self._config.address)
        except RuntimeError:
            raise ConfigError([f"listen.address: cannot listen on {self._config.address}: it is in use"]) from None
        finally:
            os.umask(mask)
        if self._claim is not None:
            self._claim.seal()
        else:
            self.address = f"{self._config.address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Take no new call, let open ones end within the drain time. Twice is fine."""
        if self._server is None:
            return
        self._draining = True
        self._health.enter_graceful_shutdown()
        self._server.stop(self._config.drain_s).wait()
        self._server = None
        if self._claim is not None:
            self._claim.release()

    def _handlers(self) -> tuple[Any, ...]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return (
            grpc.method_handlers_generic_handler(
                INGEST, {"Stream": stream(self._guard_stream), "Observe": unary(self._guard(self._observe))}
            ),
            grpc.method_handlers_generic_handler(
                CONTROL,
                {
                    "Register": unary(self._guard(self._register)),
                    "FetchPlan": unary(self._guard(self._fetch_plan)),
                    "GetStatus": unary(self._guard(self._get_status)),
                },
            ),
        )

    # what a bug looks like from outside: fixed text and an id that is in the log

    def _guard(self, behaviour: Callable[[bytes], bytes]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def call(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return behaviour(raw)
            except _Refusal as stop:
                refusal = stop
            except Exception as bug:  # noqa: BLE001 - counted as dropped{internal} by the pipeline, logged, never echoed
                refusal = self._internal(bug)
            context.abort_with_status(refusal.status())
            raise AssertionError("abort raises")

        return call

    def _guard_stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from self._stream(messages)
        except _Refusal as stop:
            refusal = stop
        except Exception as bug:  # noqa: BLE001 - as above
            refusal = self._internal(bug)
        else:
            return
        context.abort_with_status(refusal.status())

    def _internal(self, bug: Exception) -> _Refusal:
        error_id = secrets.token_hex(8)
        self._log.event(Level.ERROR, "internal_error", id=error_id, type=type(bug).__name__, text=str(bug)[:200])
        return _Refusal(code_pb2.INTERNAL, f"internal error {error_id}")

    # IngestService

    def _observe(self, raw: bytes) -> bytes:
        received_s = self._clock.monotonic_s()
        try:
            request = parse(ingest_pb2.ObserveRequest, raw)
            if not request.HasField("step_batch"):
                raise Rejected(RejectReason.MISSING, "step_batch")
            report = decode.traffic_report(request.traffic) if request.HasField("traffic") else None
            batch = self._decoder.step_batch(request.step_batch)
        except Rejected as rejected:
            raise _invalid(self._pipeline.reject(rejected)) from None
        try:
            made = self._pipeline.submit(batch, self._clock.monotonic_s() - received_s)
            if made.field:
                raise _invalid(made)
            if report is not None:
                self._report(report)
            return ingest_pb2.ObserveResponse(result=wire.result(made)).SerializeToString()
        finally:
            self._pipeline.settle()

    def _stream(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        session = _Session()
        told = self._control()
        yield ingest_pb2.StreamResponse(control=told).SerializeToString()
        try:
            for raw in messages:
                made = self._message(raw, session)
                if made is not None:
                    yield ingest_pb2.StreamResponse(result=wire.result(made)).SerializeToString()
                    self._pipeline.settle()
                if (now := self._control()) != told:
                    told = now
                    yield ingest_pb2.StreamResponse(control=told).SerializeToString()
                if self._draining:
                    return
        finally:
            self._pipeline.settle()
            if session.engine is not None:
                self._pipeline.stream_closed(session.engine, goodbye=session.goodbye)

    def _message(self, raw: bytes, session: _Session) -> Result | None:
        """The result to answer, or None for a message that is not answered."""
        received_s = self._clock.monotonic_s()
        try:
            request = parse(ingest_pb2.StreamRequest, raw)
            kind = request.WhichOneof("body")
            if kind is None:
                raise Rejected(RejectReason.MISSING, "step_batch")
            if kind == "step_batch":
                batch = self._decoder.step_batch(request.step_batch)
        except Rejected as rejected:
            return self._pipeline.reject(rejected)
        if kind == "step_batch":
            self._join(session, batch.engine_id)
            return self._pipeline.submit(batch, self._clock.monotonic_s() - received_s)
        try:
            self._speak(request, kind, session)
        except Rejected as rejected:  # not a batch: nothing to book, but a client that must be mended
            raise _invalid(rejected) from None
        return None

    def _speak(self, request: ingest_pb2.StreamRequest, kind: str, session: _Session) -> None:
        if kind == "traffic":
            report = decode.traffic_report(request.traffic)
            self._join(session, report.engine_id)
            self._report(report)
        elif kind == "finished":
            engine, requests = self._decoder.finished(request.finished)
            self._pipeline.finished(engine, requests)
        else:
            session.goodbye = decode.engine_id(request.goodbye.engine_id, "goodbye.engine_id") == session.engine

    def _join(self, session: _Session, engine: EngineId) -> None:
        """A stream belongs to the engine that speaks first on it."""
        if session.engine is None:
            session.engine = engine
            self._pipeline.stream_opened(engine)
        elif session.engine != engine:
            raise _Refusal(code_pb2.INVALID_ARGUMENT, "one engine a stream", "engine_id")

    def _report(self, report: TrafficReport) -> None:
        try:
            self._pipeline.report(report)
        except Rejected as rejected:
            raise _invalid(rejected) from None

    def _control(self) -> ingest_pb2.Control:
        return wire.control(self._pipeline.plan, self._sampling)

    # ControlService

    def _register(self, raw: bytes) -> bytes:
        try:
            request = parse(control_pb2.RegisterRequest, raw)
            engine = decode.engine_id(request.engine_id, "engine_id")
            model = decode.model_identity(request.model)
            report = TrafficReport(engine, 0, 0, (), 0, TapLedgerCounts())
            if request.HasField("traffic"):
                report = decode.traffic_report(request.traffic)
                if report.engine_id != engine:
                    raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
        except Rejected as rejected:
            raise _invalid(rejected) from None
        try:
            plan = self._pipeline.register(model, report)
        except OtherModelError:
            raise _Refusal(code_pb2.FAILED_PRECONDITION, "this sidecar is bound to another model") from None
        except TooManyEnginesError:
            raise _Refusal(code_pb2.RESOURCE_EXHAUSTED, "too many engines") from None
        self._log.event(Level.INFO, "engine_registered", engine_id=engine, plan_generation=plan.generation)
        return control_pb2.RegisterResponse(
            control=wire.control(plan, self._sampling), artifacts=[wire.artifact(state) for state in plan.artifacts]
        ).SerializeToString()

    def _fetch_plan(self, raw: bytes) -> bytes:
        try:
            request = parse(control_pb2.FetchPlanRequest, raw)
        except Rejected as rejected:
            raise _invalid(rejected) from None
        return wire.plan(self._pipeline.plan, request.known_generation).SerializeToString()

    def _get_status(self, raw: bytes) -> bytes:
        del raw  # an empty message; unknown fields are ignored
        return self._status().SerializeToString()


@dataclass(slots=True)
class _Session:
    """Who speaks on one stream."""

    engine: EngineId | None = None
    goodbye: bool = False
