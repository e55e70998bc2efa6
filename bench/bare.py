"""A bare gRPC stream, ``python -m bench.bare ADDRESS``: takes bytes, answers with as many bytes as a verdict has."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc

from sidecar.address import INGEST

_ANSWER = b"\0" * 64


def _stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    del context
    yield _ANSWER
    for _ in requests:
        yield _ANSWER


def main(address: str) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    handler = grpc.stream_stream_rpc_method_handler(_stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INGEST, {"Stream": handler}),))
    server.add_insecure_port(address)
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1])
