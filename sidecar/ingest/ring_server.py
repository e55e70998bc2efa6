"""Hands out rings: a tap says its ticket at a Unix socket beside the sidecar's own, and gets three descriptors."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sidecar.config import Ring as RingConfig
from sidecar.errors import ConfigError
from sidecar.ingest.relay import OpenRing
from sidecar.log import Level, Log
from sidecar.ring import ORDERED, Ring, Shape
from sidecar.snapshot import Transport

TICKET_BYTES = 16
GIVEN, REFUSED = b"\1", b"\0"
_SAY_S = 1.0  # how long one who connected may take to say its ticket
_BACKLOG = 16
_PEER = struct.Struct("3i")  # SO_PEERCRED: pid, uid, gid


class RingServer:
    """A ticket is good for one ring, and for as long as the stream that it was given to. Thread-safe."""

    def __init__(
        self, config: RingConfig, path: str | None, open_ring: OpenRing, close_ring: Callable[[str], None], log: Log
    ) -> None:
        self._config = config
        self._path = None if path is None or not config.enabled or not ORDERED else Path(path)
        self._open = open_ring
        self._close = close_ring
        self._log = log
        self._lock = threading.Lock()
        self._tickets: dict[bytes, str] = {}  # at most one for every open stream
        self._given: set[str] = set()
        self._names = (f"ring-{n}" for n in itertools.count())
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. The sidecar's own socket has been claimed, and with it the folder. Raises ConfigError."""
        if self._path is None:
            return
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError([f"ring: cannot listen beside the sidecar's socket: {error.strerror}"]) from None
        finally:
            os.umask(mask)
        self._thread = threading.Thread(target=self._accept, args=(self._socket,), name="rings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Twice is fine."""
        if self._socket is None or self._path is None or self._thread is None:
            return
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        self._thread.join(timeout=2 * _SAY_S)
        self._path.unlink(missing_ok=True)
        self._socket = None

    # tickets

    def offer(self) -> bytes:
        """A ticket for a stream that begins; empty if no ring is to be had here."""
        if self._socket is None:
            return b""
        ticket = secrets.token_bytes(TICKET_BYTES)
        with self._lock:
            self._tickets[ticket] = next(self._names)
        return ticket

    def withdraw(self, ticket: bytes) -> None:
        """The stream is over, and its ring with it: what was posted is still served."""
        with self._lock:
            name = self._tickets.pop(ticket, None)
            given = name in self._given
            self._given.discard(name or "")
        if name is not None and given:
            self._close(name)

    # connections

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            with peer:
                try:
                    self._serve(peer)
                except OSError as error:  # it went away, or there are no descriptors left: it goes on by gRPC
                    self._log.event(Level.WARNING, "ring_not_given", why=str(error.strerror))
                except Exception as bug:  # noqa: BLE001 - logged; the next one has its own chance
                    self._log.event(Level.ERROR, "ring_not_given", why=type(bug).__name__)

    def _serve(self, peer: socket.socket) -> None:
        peer.settimeout(_SAY_S)
        _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        ticket = peer.recv(TICKET_BYTES, socket.MSG_WAITALL)
        with self._lock:
            name = self._tickets.get(ticket)
            sound = name is not None and name not in self._given and uid in (0, os.getuid())
            if sound and name is not None:
                self._given.add(name)
        if not sound or name is None:
            self._log.event(Level.WARNING, "ring_refused")
            peer.sendall(REFUSED)
            return
        ring = Ring.create(Shape(self._config.slots, self._config.slot_bytes))
        try:
            ring.prefault(self._config.hot_bytes)
            self._open(name, Transport.RING, ring.descriptors.as_list())
            with self._lock:
                over = ticket not in self._tickets  # the stream ended while we were at it
            if over:
                self._close(name)
            socket.send_fds(peer, [GIVEN], ring.descriptors.as_list())
        except BaseException:
            ring.leave()  # should the worker open it later, it finds that nobody is there
            raise
        finally:
            ring.forget()
