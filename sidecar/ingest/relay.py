"""From gRPC's handlers to the worker: the bytes of a call go through a ring, as a tap's own do, and its reply comes back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from google.rpc import code_pb2, status_pb2

from sidecar.errors import WorkerBusyError, WorkerLostError
from sidecar.ingest.refusal import Refusal
from sidecar.ring import Kind, Producer, Ring, RingBrokenError, Shape
from sidecar.snapshot import Transport

OpenRing = Callable[[str, Transport, Sequence[int]], None]  # lets the worker serve a ring
_REPLY_BYTES = 8 << 20
_ENDED = b"\1"  # first byte of a reply that is a status: the call ends with it


class EndCallError(Exception):
    """The worker ends the call with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Relay:
    """One ring of one slot. Used by one thread at a time."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._producer = Producer(ring)

    def ask(self, raw: bytes, kind: Kind = Kind.STREAM, timeout_s: float | None = None) -> bytes | None:
        """The worker's reply to a message, empty if it has none; None if there was none in time.

        Raises EndCallError, or Refusal if the worker is gone.
        """
        try:
            slot = self._producer.reserve()
            if slot is None:
                raise RingBrokenError("asked again before the reply")
            slot[: len(raw)] = raw
            self._producer.post(len(raw), kind=kind)
            reply = self._producer.reply(timeout_s)
        except RingBrokenError:
            raise Refusal(code_pb2.UNAVAILABLE, "the worker is gone") from None
        if reply is None:
            return None
        if reply[:1] == _ENDED:
            raise EndCallError(status_pb2.Status.FromString(reply[1:]))
        return reply[1:]

    @property
    def usable(self) -> bool:
        return self._producer.outstanding == 0 and not self._ring.left

    def leave(self) -> None:
        """Whoever waits for a reply waits no longer."""
        self._ring.leave()

    def close(self) -> None:
        self._ring.close()


class Relays:
    """A relay for every call under way; those that are free are used again, for their pages are hot."""

    def __init__(self, open_ring: OpenRing, slot_bytes: int) -> None:
        self._open = open_ring
        self._shape = Shape(1, slot_bytes, _REPLY_BYTES)
        self._free: list[Relay] = []
        self._asked: set[Relay] = set()
        self._lost = False
        self._lock = threading.Lock()
        self._names = (f"relay-{n}" for n in itertools.count())

    @contextmanager
    def one(self) -> Iterator[Relay]:
        with self._lock:
            relay = self._free.pop() if self._free else None
        relay = self._made() if relay is None or not relay.usable else relay
        with self._lock:
            self._asked.add(relay)
            if self._lost:
                relay.leave()
        try:
            yield relay
        finally:
            with self._lock:
                self._asked.discard(relay)
                usable = relay.usable
                if usable:
                    self._free.append(relay)
            if not usable:
                relay.close()

    def worker_lost(self) -> None:
        """No reply will come any more: one that was killed leaves no ring by itself."""
        with self._lock:
            self._lost = True
            for relay in self._asked:
                relay.leave()

    def _made(self) -> Relay:
        ring = Ring.create(self._shape)
        with self._lock:
            name = next(self._names)
        try:
            self._open(name, Transport.GRPC, ring.descriptors.as_list())
        except (WorkerBusyError, WorkerLostError):
            ring.close()  # should the worker open it later, it finds that we have left
            raise Refusal(code_pb2.UNAVAILABLE, "the worker does not answer") from None
        return Relay(ring)

    def close(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        for relay in free:
            relay.close()
