"""gRPC in front of the pipeline: bytes in, parsed here, so that every refusal is ours, named and counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.stethoscope.v1 import control_pb2
from sidecar.address import CONTROL, INGEST, ring_path, socket_path
from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.ingest.bugs import bug_teller
from sidecar.ingest.control_service import ControlService
from sidecar.ingest.guard import Guard
from sidecar.ingest.ingest_service import IngestService
from sidecar.ingest.relay import Relays
from sidecar.ingest.ring_server import RingServer
from sidecar.ingest.socket import SocketClaim
from sidecar.ingest.wire import Settings
from sidecar.log import Log
from sidecar.reading.plan import Plan
from sidecar.snapshot import Transport
from sidecar.types import ModelIdentity, TrafficReport

# By default gRPC reads ahead without bound of a peer that never pauses: all that a flood sends, while the machine is busy.
_READ_BUFFER_BYTES = 4 << 20
_SPARE_THREADS = 8  # for status, health and registration while every stream is taken


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
        self._config = config.listen
        self._guard = Guard(bug_teller(log))
        self._rings = RingServer(config.ring, ring_path(config.listen.address), worker.open, worker.close_ring, log)
        self._relays = Relays(worker.open, config.listen.max_message_bytes)
        self._ingest = IngestService(self._relays, self._rings, plans.settings)
        self._control = ControlService(plans.register, plans.settings, status, log)
        self._health = health.HealthServicer()
        self._server: grpc.Server | None = None
        self._claim: SocketClaim | None = None
        self.address = config.listen.address

    def changed(self) -> None:
        """The settings of the taps have changed."""
        self._ingest.changed()

    def worker_lost(self) -> None:
        """Calls that wait for the worker end now."""
        self._relays.worker_lost()

    # life

    def bind(self) -> None:
        """Make the address ours; nobody is served yet. Raises ConfigError if it cannot be had."""
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._config.max_message_bytes),
            ("grpc.max_concurrent_streams", self._config.max_streams),
            ("grpc.experimental.tcp_max_read_buffer_size", _READ_BUFFER_BYTES),
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
        self._rings.start()
        self._server.start()
        for service in ("", INGEST, CONTROL):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def _bind(self, server: grpc.Server) -> None:
        path = socket_path(self._config.address)
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
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(self._config.drain_s)
        self._ingest.drain()
        stopped.wait()
        self._rings.stop()
        self._relays.close()
        self._server = None
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()

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
