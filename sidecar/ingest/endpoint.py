"""One address with a gRPC server behind it: claimed before anything listens, and given back whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from sidecar.address import socket_path
from sidecar.config import Listen
from sidecar.errors import ConfigError
from sidecar.ingest.socket import SocketClaim

# By default gRPC reads ahead without bound of a peer that never pauses: all that a flood sends, while the machine is busy.
_READ_BUFFER_BYTES = 4 << 20
_SPARE_THREADS = 8  # for status, health and registration while every stream is taken


class Endpoint:
    """``bind``, ``start``, ``stop``, in this order. address: where it listens, once it is bound."""

    def __init__(self, listen: Listen) -> None:
        self.address = listen.address
        self._listen = listen
        self._server: grpc.Server | None = None
        self._claim: SocketClaim | None = None

    @property
    def bound(self) -> bool:
        return self._server is not None

    def bind(self, handlers: Iterable[Any], extend: Callable[[grpc.Server], None] = lambda _: None) -> None:
        """Make the address ours; nobody is served yet. Raises ConfigError if it cannot be had.

        handlers: gRPC's generic ones. extend: adds whatever comes as a whole, such as health.
        """
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._listen.max_message_bytes),
            ("grpc.max_concurrent_streams", self._listen.max_streams),
            ("grpc.experimental.tcp_max_read_buffer_size", _READ_BUFFER_BYTES),
        ]
        workers = self._listen.max_streams + _SPARE_THREADS
        server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix="ingest"),
            options=options,
            maximum_concurrent_rpcs=workers,
        )
        server.add_generic_rpc_handlers(tuple(handlers))
        extend(server)
        try:
            self._bind(server)
        except ConfigError:
            self._release()
            raise
        self._server = server

    def start(self) -> None:
        """Serve. Raises RuntimeError if ``bind`` did not come before."""
        if self._server is None:
            raise RuntimeError("bind() comes before start()")
        self._server.start()

    def stop(self, drain: Callable[[], None] = lambda: None, close: Callable[[], None] = lambda: None) -> None:
        """Take no new call, ``drain``, let open calls end within the drain time, give the address back. Twice is fine.

        close: ends what stands beside the address, before another may claim it.
        """
        if self._server is None:
            return
        stopped = self._server.stop(self._listen.drain_s)
        drain()
        stopped.wait()
        close()
        self._server = None
        self._release()

    def _bind(self, server: grpc.Server) -> None:
        path = socket_path(self._listen.address)
        if path is not None:
            self._claim = SocketClaim(Path(path))
            self._claim.take()
        mask = os.umask(0o177)  # the socket is never, not for a moment, open to others
        try:
            port = server.add_insecure_port(self._listen.address)
        except RuntimeError:
            text = f"cannot listen on {self._listen.address}: in use by another server, or not this machine's"
            raise ConfigError([f"listen.address: {text}"]) from None
        finally:
            os.umask(mask)
        if self._claim is not None:
            self._claim.seal()
        else:
            self.address = f"{self._listen.address.rpartition(':')[0]}:{port}"

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
