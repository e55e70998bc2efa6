"""Ends of OTLP that a test can look into: a gRPC server that keeps what it gets, one that never answers, and rotel."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

START_S = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def attributes(of: Any) -> dict[str, Any]:
    def value(entry: KeyValue) -> Any:
        return getattr(entry.value, entry.value.WhichOneof("value") or "string_value")

    return {entry.key: value(entry) for entry in of.attributes}


class Receiver:
    """An OTLP/gRPC receiver that keeps everything; ``refuse`` makes it answer PERMISSION_DENIED."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._changed = threading.Condition()
        self._resources: list[ResourceSpans] = []
        self._spans: list[Span] = []
        self._events: list[LogRecord] = []
        self.headers: list[dict[str, str | bytes]] = []
        self.refuse = False
        self._server: grpc.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        server = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(_Traces(self), server)  # type: ignore[no-untyped-call]  # generated
        add_LogsServiceServicer_to_server(_Logs(self), server)  # type: ignore[no-untyped-call]  # generated
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait(5)

    def take(self, context: grpc.ServicerContext, *, spans: Any = (), records: Any = ()) -> None:
        if self.refuse:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused")
        with self._changed:
            self.headers.append(dict(context.invocation_metadata()))
            self._resources.extend(spans)
            self._spans.extend(span for r in spans for scope in r.scope_spans for span in scope.spans)
            self._events.extend(event for r in records for scope in r.scope_logs for event in scope.log_records)
            self._changed.notify_all()

    def spans(self, at_least: int = 0, timeout_s: float = 10.0) -> list[Span]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._spans) >= at_least, timeout_s), len(self._spans)
            return list(self._spans)

    def events(self, at_least: int = 0, timeout_s: float = 10.0) -> list[LogRecord]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._events) >= at_least, timeout_s), len(self._events)
            return list(self._events)

    def resource(self) -> dict[str, Any]:
        with self._changed:
            return attributes(self._resources[0].resource)


class _Traces(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802 - the name of the RPC
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self._receiver.take(context, spans=request.resource_spans)
        return ExportTraceServiceResponse()


class _Logs(LogsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802 - the name of the RPC
        self, request: ExportLogsServiceRequest, context: grpc.ServicerContext
    ) -> ExportLogsServiceResponse:
        self._receiver.take(context, records=request.resource_logs)
        return ExportLogsServiceResponse()


class FrozenCollector:
    """Accepts connections, as a stopped process' kernel does, and never reads or answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()


class Rotel:
    """The rotel collector as a process of its own, which passes on what it receives."""

    def __init__(self, folder: Path, *, forward_to: str) -> None:
        self._folder = folder
        self._forward_to = forward_to
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                _rotel_program(), "start",
                "--otlp-grpc-endpoint", f"127.0.0.1:{self._port}",
                "--otlp-http-endpoint", f"127.0.0.1:{free_port()}",
                "--exporter", "otlp", "--otlp-exporter-endpoint", self._forward_to, "--batch-timeout", "50ms",
                "--pid-file", self._folder / "rotel.pid", "--log-file", self._folder / "rotel.log",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline_s = time.monotonic() + START_S
        while not _listens(self._port):
            assert self._process.poll() is None, "rotel ended"
            assert time.monotonic() < deadline_s, "rotel does not listen"

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


def _rotel_program() -> Path:
    package = importlib.util.find_spec("rotel")
    assert package is not None, "pip install rotel"
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "rotel-agent"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        threading.Event().wait(0.05)  # a process of another language: nothing to be notified by
        return False
    return True
