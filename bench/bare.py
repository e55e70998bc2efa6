"""A bare gRPC stream, ``python -m bench.bare ADDRESS``: takes bytes, answers with as many bytes as a verdict has."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import grpc

from bench.grpc_server import serve

_ANSWER = b"\0" * 64


def _stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    del context
    yield _ANSWER
    for _ in requests:
        yield _ANSWER


def main(address: str) -> None:
    serve(address, grpc.stream_stream_rpc_method_handler(_stream))


if __name__ == "__main__":
    main(sys.argv[1])
