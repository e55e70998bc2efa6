"""What a refusal and what a bug look like from outside: a status of ours with fixed text, never an exception's."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from google.rpc import code_pb2

from sidecar.ingest.refusal import Refusal
from sidecar.log import Level, Log


class Guard:
    """Wraps handlers of bytes. A bug answers INTERNAL with a random id, and the id stands beside the text in the log."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def unary(self, behaviour: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler[bytes, bytes]:
        def call(raw: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return behaviour(raw)
            except Refusal as stop:
                refusal = stop
            except Exception as bug:  # noqa: BLE001 - counted as dropped{internal} by the pipeline, logged, never echoed
                refusal = self.internal(bug)
            context.abort_with_status(refusal.status())
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(call)

    def stream(self, behaviour: Callable[[Iterator[bytes]], Iterator[bytes]]) -> grpc.RpcMethodHandler[bytes, bytes]:
        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                yield from behaviour(messages)
            except Refusal as stop:
                refusal = stop
            except grpc.RpcError:  # the client is gone: there is nobody to tell
                return
            except Exception as bug:  # noqa: BLE001 - as above
                refusal = self.internal(bug)
            else:
                return
            context.abort_with_status(refusal.status())

        return grpc.stream_stream_rpc_method_handler(call)

    def internal(self, bug: Exception) -> Refusal:
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
