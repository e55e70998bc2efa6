"""gRPC in front of the pipeline: bytes in, parsed here, so that every refusal is ours, named and counted."""

from __future__ import annotations

import os
import secrets
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import code_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.clock import Clock
from sidecar.config import Listen
from sidecar.errors import ConfigError, DropReason, Rejected, RejectReason
from sidecar.ingest import decode, wire
from sidecar.ingest.checks import parse
from sidecar.ingest.refusal import Refusal, invalid
from sidecar.ingest.socket import SocketClaim
from sidecar.log import Level, Log
from sidecar.pipeline import NO_ID, OtherModelError, Pipeline, Result, TooManyEnginesError
from sidecar.types import BatchId, EngineId, SamplingPolicy, StepBatch, TapLedgerCounts, TrafficReport

INGEST, CONTROL = "stethoscope.v1.IngestService", "stethoscope.v1.ControlService"
_SPARE_THREADS = 8  # for status, health and registration while every stream is taken


class IngestServer:
    """Serves IngestService, ControlService and health on one address.

    A batch that runs into a bug of ours is booked as dropped{internal} and never ends more than itself: Observe answers
    INTERNAL with a fixed text and an id that is in the log, a stream answers the batch as dropped and goes on.
    """

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

    def bind(self) -> None:
        """Make the address ours; nobody is served yet. Raises ConfigError if it cannot be had."""
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
        try:
            self._bind(server)
        except ConfigError:
            self._release()
            raise
        self._server = server

    def start(self) -> None:
        """Serve. ``bind`` comes first."""
        if self._server is None:
            raise RuntimeError("bind() comes before start()")
        self._server.start()
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
            text = f"cannot listen on {self._config.address}: in use by another server, or not this machine's"
            raise ConfigError([f"listen.address: {text}"]) from None
        finally:
            os.umask(mask)
        if self._claim is not None:
            self._claim.seal()
        else:
            self.address = f"{self._config.address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Take no new call, let open ones end within the drain time, give the address back. Twice is fine."""
        if self._server is None:
            return
        self._draining = True
        self._health.enter_graceful_shutdown()
        self._server.stop(self._config.drain_s).wait()
        self._server = None
        self._release()

    def _release(self) -> None:
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
            except Refusal as stop:
                refusal = stop
            except Exception as bug:  # noqa: BLE001 - counted as dropped{internal} by the pipeline, logged, never echoed
                refusal = self._internal(bug)
            context.abort_with_status(refusal.status())
            raise AssertionError("abort raises")

        return call

    def _guard_stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            yield from self._stream(messages)
        except Refusal as stop:
            refusal = stop
        except grpc.RpcError:  # the client is gone: there is nobody to tell
            return
        except Exception as bug:  # noqa: BLE001 - as above
            refusal = self._internal(bug)
        else:
            return
        context.abort_with_status(refusal.status())

    def _internal(self, bug: Exception) -> Refusal:
        """Log a bug under a random id; the answer tells the id and nothing else."""
        error_id = secrets.token_hex(8)
        *_, (frame, line) = traceback.walk_tb(bug.__traceback__)
        self._log.event(
            Level.ERROR,
            "internal_error",
            id=error_id,
            type=type(bug).__name__,
            text=str(bug)[:200],
            at=f"{Path(frame.f_code.co_filename).stem}:{line}",
        )
        return Refusal(code_pb2.INTERNAL, f"internal error {error_id}")

    # IngestService

    def _observe(self, raw: bytes) -> bytes:
        received_s = self._clock.monotonic_s()
        try:
            batch, report = self._observed(raw)
        except Rejected as rejected:
            raise invalid(self._tell(self._pipeline.reject(rejected))) from None
        except Exception:
            self._pipeline.abandon()
            raise
        try:
            made = self._tell(self._pipeline.submit(batch, self._clock.monotonic_s() - received_s, report))
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

    def _stream(self, messages: Iterator[bytes]) -> Iterator[bytes]:
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
                if self._draining:
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
            return self._tell(self._pipeline.reject(rejected))
        kind = request.WhichOneof("body")
        if kind is None or kind == "step_batch":
            return self._batch(request, session, received_s)
        self._speak(request, kind, session)
        return None

    def _batch(self, request: ingest_pb2.StreamRequest, session: _Session, received_s: float) -> Result:
        named = BatchId(request.step_batch.batch_id)
        try:
            batch = self._streamed(request, session)
        except Rejected as rejected:
            sound = rejected.field not in ("step_batch", decode.BATCH_ID)  # the first fields that are looked at
            return self._tell(self._pipeline.reject(rejected, named if sound else NO_ID))
        except Exception as bug:  # noqa: BLE001 - counted as dropped{internal}, logged; the stream goes on
            self._internal(bug)
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
            return self._tell(self._pipeline.submit(batch, self._clock.monotonic_s() - received_s))
        except Exception as bug:  # noqa: BLE001 - booked by the pipeline as dropped{internal}; the stream goes on
            self._internal(bug)
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
            self._internal(bug)

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
            raise invalid(rejected) from None
        try:
            plan = self._pipeline.register(model, report)
        except OtherModelError:
            raise Refusal(code_pb2.FAILED_PRECONDITION, "this sidecar is bound to another model") from None
        except TooManyEnginesError:
            raise Refusal(code_pb2.RESOURCE_EXHAUSTED, "too many engines") from None
        self._log.event(Level.INFO, "engine_registered", engine_id=engine, plan_generation=plan.generation)
        return control_pb2.RegisterResponse(
            control=wire.control(plan, self._sampling), artifacts=[wire.artifact(state) for state in plan.artifacts]
        ).SerializeToString()

    def _fetch_plan(self, raw: bytes) -> bytes:
        try:
            request = parse(control_pb2.FetchPlanRequest, raw)
        except Rejected as rejected:
            raise invalid(rejected) from None
        return wire.plan(self._pipeline.plan, request.known_generation).SerializeToString()

    def _get_status(self, raw: bytes) -> bytes:
        del raw  # an empty message; unknown fields are ignored
        return self._status().SerializeToString()


@dataclass(slots=True)
class _Session:
    """Who speaks on one stream."""

    engine: EngineId | None = None
    goodbye: bool = False
