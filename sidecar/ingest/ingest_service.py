"""IngestService: bytes in, outcomes and verdicts out. What they say is the worker's business."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from queue import SimpleQueue
from typing import Any

import grpc
from google.rpc import code_pb2

from protos.stethoscope.v1 import ingest_pb2
from sidecar.ingest import wire
from sidecar.ingest.refusal import Refusal
from sidecar.ingest.relay import Relay, Relays
from sidecar.ingest.ring_server import RingServer
from sidecar.ring import Kind

_CHANGED, _DRAIN = "changed", "drain"
# A call is waited for. Of one without a deadline gRPC says that ages are left, more than a clock can hold.
_LONGEST_S = 3600.0
_UNREAD = 16  # answers that a client may leave unread before nothing more is taken from it


class IngestService:
    """Handlers of bytes. A stream's messages are read on a thread of their own, so that settings reach a silent stream too."""

    def __init__(self, relays: Relays, rings: RingServer, settings: Callable[[], wire.Settings]) -> None:
        self._relays = relays
        self._rings = rings
        self._settings = settings
        self._lock = threading.Lock()
        self._outboxes: set[SimpleQueue[Any]] = set()
        self._draining = False

    def changed(self) -> None:
        """The settings have changed: tell every stream."""
        self._post(_CHANGED)

    def drain(self) -> None:
        """End every stream after what it is just doing."""
        self._draining = True
        self._post(_DRAIN)

    def _post(self, what: str) -> None:
        with self._lock:
            for outbox in self._outboxes:
                outbox.put(what)

    # one call, one batch

    def observe(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Raises Refusal or EndCallError. A batch whose sender has gone, or will not wait any more, is not taken."""
        left_s = context.time_remaining()
        if left_s is not None and left_s <= 0:
            raise Refusal(code_pb2.DEADLINE_EXCEEDED, "the deadline had passed on arrival")
        with self._relays.one() as relay:
            reply = relay.ask(raw, Kind.OBSERVE, _LONGEST_S if left_s is None else min(left_s, _LONGEST_S))
        if reply is None:
            raise Refusal(code_pb2.DEADLINE_EXCEEDED, "no verdict in time")
        return reply

    # a stream

    def stream(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        """Raises Refusal or EndCallError."""
        ticket, told = self._rings.offer(), self._settings()
        yield _control(told, ticket)
        reader = _Reader(messages, self._relays)
        try:
            with self._listed(reader.outbox):
                reader.start()
                while (item := reader.outbox.get()) is not None:
                    if isinstance(item, bytes):
                        yield item
                        reader.unread.release()
                    elif isinstance(item, Exception):
                        raise item
                    elif item == _DRAIN and not reader.end_soon():
                        yield from reader.left()
                        return
                    elif item == _CHANGED and (now := self._settings()) != told:
                        told = now
                        yield _control(told)
        finally:
            reader.end()
            self._rings.withdraw(ticket)

    @contextmanager
    def _listed(self, outbox: SimpleQueue[Any]) -> Iterator[None]:
        """Among those that are told what concerns every stream."""
        with self._lock:
            self._outboxes.add(outbox)
        if self._draining:
            outbox.put(_DRAIN)
        try:
            yield
        finally:
            with self._lock:
                self._outboxes.discard(outbox)


class _Reader:
    """Takes a stream's messages to the worker, one after the other, and puts what comes back in an outbox; None at the end.

    unread: to be released for every answer that was read, so that a client that reads nothing does not fill our memory.
    """

    def __init__(self, messages: Iterator[bytes], relays: Relays) -> None:
        self.outbox: SimpleQueue[Any] = SimpleQueue()
        self.unread = threading.Semaphore(_UNREAD)
        self._messages = messages
        self._relays = relays
        self._lock = threading.Lock()
        self._asking = False
        self._ending = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="stream", daemon=True).start()

    def end_soon(self) -> bool:
        """Take no further message. Whether one is under way, whose reply must still be passed on."""
        with self._lock:
            self._ending = True
            return self._asking

    def left(self) -> Iterator[bytes]:
        """Replies that joined the outbox behind the word that ends the stream, once ``end_soon`` said that none is under way."""
        while not self.outbox.empty():
            item = self.outbox.get()
            if isinstance(item, bytes):
                yield item

    def end(self) -> None:
        """Nobody reads any more."""
        self.end_soon()
        self.unread.release()

    def _run(self) -> None:
        try:
            first = next(self._messages, None)  # a tap that has a ring says nothing here, and needs no relay
            if first is not None:
                with self._relays.one() as relay:
                    self._relay(relay, first)
        except grpc.RpcError:  # the client is gone: there is nobody to tell
            pass
        except Exception as end:  # noqa: BLE001 - the handler's thread raises it, where it becomes a status
            self.outbox.put(end)
        finally:
            self.outbox.put(None)

    def _relay(self, relay: Relay, first: bytes) -> None:
        try:
            for raw in chain((first,), self._messages):
                if not self._begin():
                    return
                reply = relay.ask(raw)
                if reply:
                    self.outbox.put(reply)
                self._asking = False
                if reply:
                    self.unread.acquire()
        finally:
            if relay.usable:
                relay.ask(b"", Kind.CLOSED)

    def _begin(self) -> bool:
        with self._lock:
            self._asking = not self._ending
            return self._asking


def _control(settings: wire.Settings, ticket: bytes = b"") -> bytes:
    return ingest_pb2.StreamResponse(control=wire.control(settings, ticket)).SerializeToString()
