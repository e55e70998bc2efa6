"""The sidecar's side of shared rings, for the tap's tests: hands them out for tickets, and takes what comes by them."""

from __future__ import annotations

import secrets
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sidecar.ring import Consumer, Ring, RingBrokenError, Shape, Taken

DEADLINE_S = 20.0
SHAPE = Shape(slots=4, slot_bytes=4 << 20, reply_bytes=1 << 16)  # as many as a tap may leave unanswered by gRPC

# Message and slot to the reply; None is no reply at all, then or later.
Take = Callable[[memoryview, memoryview], bytes | None]


class RingHost:
    """One listening socket, and one thread for every ring that was taken."""

    def __init__(self, path: str, take: Take, shape: Shape = SHAPE) -> None:
        self.path = path
        self.shape = shape
        self.grants = True  # False: whoever comes is refused
        self.rings: list[Ring] = []
        self._take = take
        self._tickets: set[bytes] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stopped = threading.Event()

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        self._listener.bind(self.path)
        self._listener.listen()
        self._spawn(self._accept)

    def stop(self) -> None:
        self._stopped.set()
        self.leave()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._listener.close()
        for ring in self.rings:
            ring.close()

    def ticket(self) -> bytes:
        made = secrets.token_bytes(16)
        self._tickets.add(made)
        return made

    def leave(self) -> None:
        """End every ring, answered or not: what the tap sees of a worker that is gone."""
        for ring in self.rings:
            ring.leave()

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE_S)
                self._hand_out(connection)

    def _hand_out(self, connection: socket.socket) -> None:
        ticket = connection.recv(16, socket.MSG_WAITALL)
        if not self.grants or ticket not in self._tickets:
            connection.sendall(b"\x00")
            return
        self._tickets.remove(ticket)
        ring = Ring.create(self.shape)
        self.rings.append(ring)
        socket.send_fds(connection, [b"\x01"], ring.descriptors.as_list())
        self._spawn(self._serve, Consumer(ring))

    def _serve(self, consumer: Consumer) -> None:
        mute = False
        with suppress(RingBrokenError):
            while (taken := self._next(consumer)) is not None:
                reply = self._take(taken.message, taken.slot)
                assert consumer.intact(taken)
                mute = mute or reply is None or self._stopped.is_set()
                if not mute:
                    consumer.answer(taken, reply or b"")

    def _next(self, consumer: Consumer) -> Taken | None:
        """None once either side has left and nothing is there any more."""
        poll = select.poll()
        poll.register(consumer.ring.descriptors.posted, select.POLLIN)
        while not self._stopped.is_set():
            consumer.clear()
            taken = consumer.take()
            if taken is not None or consumer.ring.left:
                return taken
            poll.poll(1000)
        return None
