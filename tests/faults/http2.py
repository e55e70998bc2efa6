"""HTTP/2 by hand (RFC 9113, RFC 7541): the frames that no decent client sends."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0x1, 0x3, 0x4, 0x9
END_HEADERS, CANCEL = 0x4, 0x8
DEADLINE_S = 30.0


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """One header field, not indexed, not compressed."""
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def call(path: str) -> bytes:
    """The header block of a gRPC call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers"}
    return b"".join(literal(*field) for field in fields.items()) + literal("content-type", "application/grpc")


class Connection:
    """A connection that has said hello. What comes back is read and thrown away, so that nobody waits for us."""

    def __init__(self, address: str, *, hello: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self.closed = threading.Event()  # by the other side
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        if hello:
            self.send(PREFACE + frame(SETTINGS, 0))

    def send(self, data: bytes) -> bool:
        """False if the other side has closed."""
        with suppress(ConnectionError):
            self._socket.sendall(data)
        return not self.closed.is_set()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(DEADLINE_S)
        self._socket.close()

    def _drain(self) -> None:
        with suppress(ConnectionError):
            while True:
                with suppress(TimeoutError):  # the other side may be silent for as long as it likes
                    if not self._socket.recv(65536):
                        break
        self.closed.set()
