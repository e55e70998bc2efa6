"""A small OTLP/gRPC receiver, so that the demo can show where its spans go without anything else installed."""

from __future__ import annotations

import threading
from concurrent import futures
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Received:
    """What has come in so far."""

    spans: int = 0
    events: int = 0
    last_trace: str = ""
    last_parent: str = ""


class Collector:
    """Counts spans and events on a port of the system's choosing, loopback only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = Received()
        self._server = grpc.server(futures.ThreadPoolExecutor(2, thread_name_prefix="otlp"))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)  # type: ignore[no-untyped-call]
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Logs(self), self._server)  # type: ignore[no-untyped-call]
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(1.0).wait()

    def received(self) -> Received:
        with self._lock:
            return self._received

    def add(self, spans: int = 0, events: int = 0, last_trace: str = "", last_parent: str = "") -> None:
        with self._lock:
            now = self._received
            self._received = Received(
                now.spans + spans, now.events + events, last_trace or now.last_trace, last_parent or now.last_parent
            )


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(  # noqa: N802 - the protocol's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        del context
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self._collector.add(1, 0, span.trace_id.hex(), span.parent_span_id.hex())
        return trace_service_pb2.ExportTraceServiceResponse()


class _Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(  # noqa: N802 - the protocol's name
        self, request: logs_service_pb2.ExportLogsServiceRequest, context: grpc.ServicerContext
    ) -> logs_service_pb2.ExportLogsServiceResponse:
        del context
        records = sum(len(scope.log_records) for resource in request.resource_logs for scope in resource.scope_logs)
        self._collector.add(0, records)
        return logs_service_pb2.ExportLogsServiceResponse()
