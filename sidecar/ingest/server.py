"""gRPC in front of the pipeline: bytes in, parsed here, so that every refusal is ours, named and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.stethoscope.v1 import control_pb2
from sidecar.address import CONTROL, INGEST, ring_path
from sidecar.config import Config
from sidecar.ingest.bugs import bug_teller
from sidecar.ingest.control_service import ControlService
from sidecar.ingest.endpoint import Endpoint
from sidecar.ingest.guard import Guard
from sidecar.ingest.ingest_service import IngestService
from sidecar.ingest.relay import Relays
from sidecar.ingest.ring_server import RingServer
from sidecar.ingest.wire import Settings
from sidecar.log import Log
from sidecar.reading.plan import Plan
from sidecar.snapshot import Transport
from sidecar.types import ModelIdentity, TrafficReport


class WorkerRings(Protocol):
    """What the server needs of the worker: that it serves rings."""

    def open(self, name: str, transport: Transport, descriptors: Sequence[int]) -> None: ...

    def close_ring(self, name: str) -> None: ...


class PlanSource(Protocol):
    """What the server needs of the plans."""

    def settings(self) -> Settings: ...

    def register(self, model: ModelIdentity, report: TrafficReport) -> Plan: ...


class IngestServer:
    """Serves IngestService, ControlService and health on one address.

    A batch that runs into a bug of ours is booked as dropped{internal} and never ends more than itself: Observe answers
    INTERNAL with a fixed text and an id that is in the log, a stream answers the batch as dropped and goes on.
    """

    def __init__(
        self,
        config: Config,
        worker: WorkerRings,
        plans: PlanSource,
        status: Callable[[], control_pb2.GetStatusResponse],
        log: Log,
    ) -> None:
        self._reflects = config.listen.reflection
        self._endpoint = Endpoint(config.listen)
        self._guard = Guard(bug_teller(log))
        self._rings = RingServer(config.ring, ring_path(config.listen.address), worker.open, worker.close_ring, log)
        self._relays = Relays(worker.open, config.listen.max_message_bytes)
        self._ingest = IngestService(self._relays, self._rings, plans.settings)
        self._control = ControlService(plans.register, plans.settings, status, log)
        self._health = health.HealthServicer()

    @property
    def address(self) -> str:
        """Where it listens: the port that the system chose, once it is bound."""
        return self._endpoint.address

    def changed(self) -> None:
        """The settings of the taps have changed."""
        self._ingest.changed()

    def worker_lost(self) -> None:
        """Calls that wait for the worker end now."""
        self._relays.worker_lost()

    # life

    def bind(self) -> None:
        """Make the address ours; nobody is served yet. Raises ConfigError if it cannot be had."""
        self._endpoint.bind(self._handlers(), self._extend)

    def start(self) -> None:
        """Serve. ``bind`` comes first."""
        if not self._endpoint.bound:
            raise RuntimeError("bind() comes before start()")
        self._rings.start()
        self._endpoint.start()
        for service in ("", INGEST, CONTROL):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Take no new call, let open ones end within the drain time, give the address back. Twice is fine."""
        if not self._endpoint.bound:
            return
        self._health.enter_graceful_shutdown()
        self._endpoint.stop(self._ingest.drain, self._close)

    def _close(self) -> None:
        self._rings.stop()
        self._relays.close()

    def _extend(self, server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._reflects:
            reflection.enable_server_reflection((INGEST, CONTROL, reflection.SERVICE_NAME), server)

    def _handlers(self) -> tuple[Any, ...]:
        unary, stream = self._guard.unary, self._guard.stream
        ingest = {"Stream": stream(self._ingest.stream), "Observe": unary(self._ingest.observe)}
        control = {
            "Register": unary(self._control.register),
            "FetchPlan": unary(self._control.fetch_plan),
            "GetStatus": unary(self._control.get_status),
        }
        return (
            grpc.method_handlers_generic_handler(INGEST, ingest),
            grpc.method_handlers_generic_handler(CONTROL, control),
        )
