"""A gRPC server of one stream method, until SIGTERM: what the bare and the naive service stand on."""

from __future__ import annotations

import signal
import threading
from concurrent import futures
from typing import Any

import grpc

from sidecar.address import INGEST


def serve(address: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
    """Blocks. Must run on the main thread."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INGEST, {"Stream": handler}),))
    server.add_insecure_port(address)
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.stop(0)
