"""A small HTTP server for a scraper and its probes: three paths, GET only, everything bounded."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from sidecar.export.http_head import BadHead, Head, parse_head, read_head
from sidecar.log import Level, Log

_PLAIN = "text/plain; charset=utf-8"
_DRAIN_S = 1.0  # for a client that still sends: closing on unread bytes would reset the connection and lose the answer
_DRAIN_BYTES = 1 << 16
_STOP_S = 2.0

Render = Callable[[str], tuple[bytes, str]]


class HttpOutcome(StrEnum):
    """How one connection ended."""

    ANSWERED = "answered"
    BAD_REQUEST = "bad_request"
    TIMED_OUT = "timed_out"
    ABORTED = "aborted"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = _PLAIN
    outcome: HttpOutcome = HttpOutcome.ANSWERED

    def encode(self) -> bytes:
        allow = "Allow: GET\r\n" if self.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
            f"X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n"
        )
        return head.encode("latin-1") + self.body


def _refusal(status: int, outcome: HttpOutcome = HttpOutcome.BAD_REQUEST) -> _Answer:
    found = HTTPStatus(status)
    return _Answer(found, f"{found.value} {found.phrase}\n".encode(), outcome=outcome)


class MetricsServer:
    """Serves /metrics, /healthz and /readyz on one address; one thread a connection, at most ``max_connections``.

    render: turns the Accept header into (body, content type), on several threads at once. If it raises, the scrape is
    answered 500 and counted.
    header_timeout_s: for the whole head of a request, and again for a client that reads its answer slowly.
    ready: what /readyz says (200 or 503); without it, ready means alive.
    log: where a render that raised is told; without it, only the count tells.
    A connection beyond the bound is answered 503 at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        render: Render,
        *,
        max_connections: int,
        header_timeout_s: float,
        ready: Callable[[], bool] | None = None,
        log: Log | None = None,
    ) -> None:
        self._address = (host, port)
        self._render = render
        self._ready = ready
        self._log = log
        self._timeout_s = header_timeout_s
        self._max_connections = max_connections
        self._lock = threading.Lock()  # of the two fields below
        self._counts = dict.fromkeys(HttpOutcome, 0)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None

    @property
    def port(self) -> int:
        """The port in use: the one that the system chose if it was 0. Raises RuntimeError before start()."""
        if self._listener is None:
            raise RuntimeError("the metrics server is not started")
        return int(self._listener.getsockname()[1])

    def counts(self) -> Mapping[HttpOutcome, int]:
        """Count the connections since the start by how they ended."""
        with self._lock:
            return dict(self._counts)

    def start(self) -> None:
        """Listen, then accept on a thread of its own. Raises OSError naming the address if it cannot be had."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server(self._address, family=family, backlog=self._max_connections)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen for scrapes on {host} port {port}: {error.strerror}") from error
        self._listener.setblocking(False)
        self._wake = socket.socketpair()
        selector = selectors.DefaultSelector()  # here, where the lack of a descriptor is told to whoever starts
        selector.register(self._listener, selectors.EVENT_READ)
        selector.register(self._wake[1], selectors.EVENT_READ)
        self._acceptor = threading.Thread(
            target=self._accept_until_woken,
            args=(selector, self._listener, self._wake[1]),
            name="metrics-accept",
            daemon=True,
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Close the address and every open connection, and wait a bounded time for their threads. Twice is fine."""
        if self._listener is None or self._wake is None or self._acceptor is None:
            return
        with suppress(OSError):
            self._wake[0].send(b"x")
        self._acceptor.join(_STOP_S)
        with self._lock:
            still_open = dict(self._open)
        for connection in still_open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline_s = time.monotonic() + _STOP_S
        for worker in still_open.values():
            worker.join(max(0.0, deadline_s - time.monotonic()))
        for held in (self._listener, *self._wake):
            held.close()
        self._listener = self._wake = self._acceptor = None

    def _accept_until_woken(
        self, selector: selectors.BaseSelector, listener: socket.socket, wake: socket.socket
    ) -> None:
        with selector:
            while True:
                if any(key.fileobj is wake for key, _ in selector.select()):
                    return
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # out of descriptors, or the client left: a pause, so that it cannot become a busy loop
                    self._end(None, HttpOutcome.ABORTED)
                    wake.settimeout(0.05)
                    with suppress(TimeoutError):
                        wake.recv(1, socket.MSG_PEEK)
                    continue
                self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        with self._lock:
            if admitted := len(self._open) < self._max_connections:
                self._open[connection] = worker = threading.Thread(
                    target=self._serve, args=(connection,), name="metrics-http", daemon=True
                )
        if not admitted or not _started(worker):
            self._end(connection, HttpOutcome.REFUSED)
            with connection, suppress(OSError):
                connection.setblocking(False)
                connection.send(_refusal(503).encode())
                connection.shutdown(socket.SHUT_WR)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            outcome = self._converse(connection)
        self._end(connection, outcome)

    def _converse(self, connection: socket.socket) -> HttpOutcome:
        """Read one request, send one answer. Returns how it ended and raises nothing."""
        try:
            answer = self._hear(connection)
            connection.settimeout(self._timeout_s)  # of sendall: the time for all of it
            connection.sendall(answer.encode())
        except OSError:
            return HttpOutcome.ABORTED
        with suppress(OSError):
            _drain(connection)
        return answer.outcome

    def _hear(self, connection: socket.socket) -> _Answer:
        """Raises OSError if the client is gone."""
        try:
            head = parse_head(read_head(connection, time.monotonic() + self._timeout_s))
        except BadHead as bad:
            return _refusal(bad.status)
        except TimeoutError:
            return _refusal(408, HttpOutcome.TIMED_OUT)
        try:
            return self._answer(head)
        except Exception as bug:  # noqa: BLE001 - whatever a render does, it is counted and the next scrape is served
            if self._log is not None:
                self._log.event(Level.ERROR, "scrape_failed", type=type(bug).__name__)
            return _refusal(500, HttpOutcome.FAILED)

    def _answer(self, head: Head) -> _Answer:
        if head.path not in ("/metrics", "/healthz", "/readyz"):
            return _refusal(404)
        if head.method != "GET":
            return _refusal(405)
        if head.path == "/metrics":
            body, content_type = self._render(head.headers.get("accept", ""))
            return _Answer(HTTPStatus.OK, body, content_type)
        if head.path == "/readyz" and self._ready is not None and not self._ready():
            return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
        return _Answer(HTTPStatus.OK, b"ok\n")

    def _end(self, connection: socket.socket | None, outcome: HttpOutcome) -> None:
        with self._lock:
            self._counts[outcome] += 1
            if connection is not None:
                self._open.pop(connection, None)


def _started(thread: threading.Thread) -> bool:
    try:
        thread.start()
    except RuntimeError:  # the system has no thread left
        return False
    return True


def _drain(connection: socket.socket) -> None:
    """Read what the client still sends, a little and not for long."""
    connection.shutdown(socket.SHUT_WR)
    deadline_s, left = time.monotonic() + _DRAIN_S, _DRAIN_BYTES
    while left > 0 and (wait_s := deadline_s - time.monotonic()) > 0:
        connection.settimeout(wait_s)
        chunk = connection.recv(4096)
        if not chunk:
            return
        left -= len(chunk)
