"""What goes out on a link, message by message: steps as batches, ends, reports, and the farewell."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from sidecar.ring import RingBrokenError
from sidecar.tap import wire
from sidecar.tap.batch import MESSAGE_BYTES, BatchMessage, PlainMessage, parts
from sidecar.tap.books import Books
from sidecar.tap.joined import Joined
from sidecar.tap.link import Link, LinkClosedError
from sidecar.tap.outbox import Finished, Report, Stop
from sidecar.tap.step import CapturedStep


class Sender:
    """Runs on the thread that takes its messages."""

    def __init__(self, engine_id: str, link: Link, books: Books) -> None:
        self._engine_id = engine_id
        self._link = link
        self._books = books
        self._run = uuid.uuid4().hex[:16]
        self._batches = 0
        self._in_hand = 0  # tokens of what is being sent, without those that were

    def messages(self) -> Iterator[bytes]:
        """What gRPC sends, in order; what goes by the ring is not among it. Ends after the goodbye, or when the link is closed.

        The ring is given back when this ends.
        """
        self._link.await_way()
        try:
            yield from self._flow()
        finally:
            if self._link.ring is not None:
                self._link.ring.close()

    def _flow(self) -> Iterator[bytes]:
        while not self._link.closed:
            item = self._link.next()
            if item is None:
                yield from self._fall_back()
            elif isinstance(item, Stop):
                yield from self._farewell(item.deadline_s)
                return
            elif isinstance(item, Joined):
                yield from self._send(item.step(), item.steps)
            elif isinstance(item, Finished):
                for raw in wire.finished_messages(self._engine_id, item.request_ids):
                    yield from self._say(raw)
            else:
                yield from self._say(self._report_message(item))

    def _send(self, step: CapturedStep, apart: Sequence[CapturedStep] = ()) -> Iterator[bytes]:
        """apart: the steps that it was joined of, which go one by one if it cannot be encoded."""
        self._in_hand = step.tokens
        try:
            for part in parts(step, MESSAGE_BYTES if self._link.ring is None else self._link.ring.part_bytes):
                yield from self._carry(BatchMessage(self._engine_id, f"{self._run}-{self._batches}", part))
                self._batches += 1
        except LinkClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - states that cannot be encoded cost their own step only
            if len(apart) > 1 and self._in_hand == step.tokens:  # nothing of it was sent
                self._in_hand = 0
                for one in apart:
                    yield from self._send(one)
            else:
                self._books.fail()
                self._link.tell("batch_not_encoded", error)
        finally:
            if self._in_hand:
                self._link.lose(self._in_hand)

    def _say(self, raw: bytes, deadline_s: float = math.inf) -> Iterator[bytes]:
        """A message that is no batch."""
        with suppress(LinkClosedError):
            yield from self._carry(PlainMessage(raw), deadline_s)

    def _carry(self, message: BatchMessage | PlainMessage, deadline_s: float = math.inf) -> Iterator[bytes]:
        """By the ring, or else to gRPC. Raises LinkClosedError if the link is closed, or has no room in time."""
        if not self._link.room_for(message, deadline_s):
            raise LinkClosedError
        ring = self._link.ring
        if ring is not None:
            with suppress(RingBrokenError):
                ring.put(message, partial(self._book, message))
                return
        yield from self._fall_back()
        raw = message.inline()
        self._book(message)
        yield raw

    def _book(self, message: BatchMessage | PlainMessage) -> None:
        if isinstance(message, BatchMessage):
            self._link.book(message)
            self._in_hand -= message.step.tokens

    def _fall_back(self) -> Iterator[bytes]:
        """From a ring that has ended to gRPC. What lies in its slots unanswered goes again: the sidecar knows what it has had."""
        ring = self._link.leave_ring()
        if ring is None:
            return
        self._link.tell("transport=grpc why=the ring has ended")
        try:
            yield from ring.rescue()
        finally:
            ring.close()

    def _farewell(self, deadline_s: float) -> Iterator[bytes]:
        yield from self._settle(deadline_s)
        yield from self._say(self._report_message(self._link.report()), deadline_s)
        yield from self._say(wire.goodbye_message(self._engine_id), deadline_s)
        if self._link.ring is not None:  # whoever leaves it takes what was not read along
            yield from self._settle(deadline_s)

    def _settle(self, deadline_s: float) -> Iterator[bytes]:
        """Until everything was answered, or the deadline."""
        while self._link.settled(deadline_s):
            yield from self._fall_back()

    def _report_message(self, report: Report) -> bytes:
        return wire.traffic_message(wire.traffic_report(self._engine_id, report.corrected(), report.ledger))
