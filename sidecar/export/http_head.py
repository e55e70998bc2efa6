"""The head of one HTTP/1.x request, read within a size and a deadline and parsed strictly."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 8192
_END = b"\r\n\r\n"
_REQUEST_LINE_PARTS = 3


class BadHead(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The head cannot be served; ``status`` is the HTTP status that says why."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. ``path`` has no query; names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)


def read_head(connection: socket.socket, deadline_s: float, now_s: Callable[[], float] = time.monotonic) -> bytes:
    """Read up to the empty line. The deadline is for the whole head, so a byte now and then does not extend it.

    Raises BadHead(431) beyond MAX_HEAD_BYTES, TimeoutError at the deadline, ConnectionError if the client leaves first.
    """
    head = bytearray()
    while _END not in head:
        left_s = deadline_s - now_s()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(4096)
        if not chunk:
            raise ConnectionError
        head += chunk
        if len(head) > MAX_HEAD_BYTES:
            raise BadHead(431)
    return bytes(head.partition(_END)[0])


def parse_head(raw: bytes) -> Head:
    r"""Parse what read_head gave. Raises BadHead(400) for anything that is not an HTTP/1.x request head.

    >>> parse_head(b"GET /metrics?x=1 HTTP/1.1\r\nAccept: text/plain").path
    '/metrics'
    """
    lines = raw.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != _REQUEST_LINE_PARTS or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
        raise BadHead(400)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadHead(400)
        headers[name.lower()] = value.strip()
    return Head(parts[0], parts[1].partition("?")[0], headers)
