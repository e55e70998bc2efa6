"""ControlService: who sends, what is read, how it goes."""

from __future__ import annotations

from collections.abc import Callable

from google.rpc import code_pb2

from protos.stethoscope.v1 import control_pb2
from sidecar.errors import (
    EngineIdInUseError,
    OtherModelError,
    Rejected,
    RejectReason,
    TooManyEnginesError,
    WorkerBusyError,
    WorkerLostError,
)
from sidecar.ingest import decode, wire
from sidecar.ingest.checks import parse
from sidecar.ingest.refusal import Refusal, invalid
from sidecar.log import Level, Log
from sidecar.reading.plan import Plan
from sidecar.types import EngineId, ModelIdentity, TapLedgerCounts, TrafficReport

_REFUSALS = {
    EngineIdInUseError: (code_pb2.ALREADY_EXISTS, "an engine of this id has an open stream"),
    OtherModelError: (code_pb2.FAILED_PRECONDITION, "this sidecar is bound to another model"),
    TooManyEnginesError: (code_pb2.RESOURCE_EXHAUSTED, "too many engines"),
    WorkerBusyError: (code_pb2.UNAVAILABLE, "the worker does not answer"),
    WorkerLostError: (code_pb2.UNAVAILABLE, "the worker is gone"),
}


class ControlService:
    """Handlers of bytes. Raises Refusal for what the caller did wrong."""

    def __init__(
        self,
        register: Callable[[ModelIdentity, TrafficReport], Plan],
        settings: Callable[[], wire.Settings],
        status: Callable[[], control_pb2.GetStatusResponse],
        log: Log,
    ) -> None:
        self._register = register
        self._settings = settings
        self._status = status
        self._log = log

    def register(self, raw: bytes, _: object = None) -> bytes:
        try:
            engine, model, report = registration(raw)
        except Rejected as rejected:
            raise invalid(rejected) from None
        try:
            plan = self._register(model, report)
        except tuple(_REFUSALS) as refused:
            refusal = Refusal(*_REFUSALS[type(refused)])
            self._log.event(Level.WARNING, "engine_refused", why=refusal.text)
            raise refusal from None
        self._log.event(Level.INFO, "engine_registered", engine_id=engine, plan_generation=plan.generation)
        return control_pb2.RegisterResponse(
            control=wire.control(self._settings()), artifacts=[wire.artifact(state) for state in plan.artifacts]
        ).SerializeToString()

    def fetch_plan(self, raw: bytes, _: object = None) -> bytes:
        try:
            request = parse(control_pb2.FetchPlanRequest, raw)
        except Rejected as rejected:
            raise invalid(rejected) from None
        return wire.plan(self._settings().plan, request.known_generation).SerializeToString()

    def get_status(self, raw: bytes, _: object = None) -> bytes:
        del raw  # an empty message; unknown fields are ignored
        return self._status().SerializeToString()


def registration(raw: bytes) -> tuple[EngineId, ModelIdentity, TrafficReport]:
    """Who registers, what it serves, and what it has computed so far. Raises Rejected with the field's path."""
    request = parse(control_pb2.RegisterRequest, raw)
    engine = decode.engine_id(request.engine_id, "engine_id")
    model = decode.model_identity(request.model)
    if not request.HasField("traffic"):
        return engine, model, TrafficReport(engine, 0, 0, (), 0, TapLedgerCounts())
    report = decode.traffic_report(request.traffic)
    if report.engine_id != engine:
        raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
    return engine, model, report
