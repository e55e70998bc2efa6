"""What a refusal and what a bug look like from outside: a status of ours with fixed text, never an exception's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from sidecar.ingest.refusal import Refusal
from sidecar.ingest.relay import EndCallError


class Guard:
    """Wraps handlers of bytes. A bug answers INTERNAL with a random id, and the id stands beside the text in the log.

    bug: logs an exception and makes the refusal that tells its id.
    """

    def __init__(self, bug: Callable[[Exception], Refusal]) -> None:
        self._bug = bug

    def unary(self, behaviour: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler[bytes, bytes]:
        def call(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return behaviour(raw, context)
            except Exception as stop:  # noqa: BLE001 - told by a status; a bug is logged, never echoed
                status = self._status(stop)
            context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    def stream(self, behaviour: Callable[[Iterator[bytes]], Iterator[bytes]]) -> grpc.RpcMethodHandler[bytes, bytes]:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                yield from behaviour(messages)
            except Exception as stop:  # noqa: BLE001 - as above
                status = self._status(stop)
            else:
                return
            context.abort_with_status(rpc_status.to_status(status))

        return grpc.stream_stream_rpc_method_handler(call)

    def _status(self, stop: Exception) -> status_pb2.Status:
        if isinstance(stop, EndCallError):
            return stop.status
        return stop.status() if isinstance(stop, Refusal) else self._bug(stop).status()
