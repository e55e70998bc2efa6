"""One stream to the sidecar, from its first answer to its end: what waits, what was sent, what came back."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from protos.stethoscope.v1 import ingest_pb2
from sidecar.ring import RingBrokenError
from sidecar.tap import wire
from sidecar.tap.batch import MESSAGE_BYTES, BatchMessage, PlainMessage, parts
from sidecar.tap.books import Books
from sidecar.tap.limits import LinkLimits
from sidecar.tap.outbox import Finished, Item, Outbox, Report, Stop, Waiting
from sidecar.tap.ring_post import RingPost
from sidecar.tap.step import CapturedStep

log = logging.getLogger("stethoscope.tap")
_WORD, _KINDS = 100, 32  # longest reason, and most kinds of refusal, that go to the log


class _ClosedError(Exception):
    """Nothing is sent on this link any more."""


@dataclass(frozen=True, slots=True)
class _Sent:
    tokens: int
    at_s: float


class Link:
    """``offer`` is the engine's side, ``messages`` feeds gRPC or the ring, ``answer`` takes what came back, ``close`` settles.

    Every step that was offered and taken ends as ok, refused or unknown (it was sent) or dropped (it was not).
    """

    def __init__(self, engine_id: str, books: Books, limits: LinkLimits) -> None:
        self._engine_id = engine_id
        self._books = books
        self._limits = limits
        self._changed = threading.Condition(threading.Lock())  # guards everything below; the sender alone waits
        self._outbox = Outbox(limits)
        self._unanswered: OrderedDict[str, _Sent] = OrderedDict()
        self._moved_s = math.inf  # when a batch was last sent or answered
        self._closed = False
        self._stopping = False
        self._agreed = False  # on how messages go
        self._ring: RingPost | None = None  # set once, before agreed; taken away by the sender
        self._run = uuid.uuid4().hex[:16]  # from here on the sender's
        self._batches = 0
        self._report_due_s = time.monotonic() + limits.report_s
        self._in_hand = 0  # tokens of the step that is being sent, without those that were
        self._told: set[str] = set()
        self._outbox.append(self._report())  # first of all: from then on the sidecar keeps the engine id for us

    # the engine's side

    def offer(self, step: CapturedStep) -> bool:
        """Take the step if there is room. Never waits for more than the few instructions under the lock."""
        with self._changed:
            if self._closed or self._stopping or not self._outbox.add(step, time.monotonic()):
                return False
            self._changed.notify()
        return True

    @property
    def congested(self) -> bool:
        """True while a step that is offered now would hardly be sent in time. Takes no lock."""
        now_s, limit_s = time.monotonic(), self._limits.queue_s
        late = now_s - self._outbox.oldest_s > limit_s / 2
        stuck = now_s - self._moved_s > limit_s and not self._window_open
        return late or stuck or self._outbox.full

    def finish(self, request_ids: tuple[str, ...]) -> None:
        """Behind the batches offered so far. Lost, and counted, if the queue is full: the sidecar ends idle requests by itself."""
        with self._changed:
            if self._closed or len(self._outbox) >= 2 * self._limits.queue_batches:
                self._books.lose_ends(len(request_ids))
                return
            self._outbox.append(Finished(request_ids))
            self._changed.notify()

    # the client's side

    def agree(self, ring: RingPost | None) -> bool:
        """Messages go by this ring, which becomes the link's, or by gRPC. False if that is settled already."""
        with self._changed:
            if self._agreed or self._closed:
                return False
            self._ring, self._agreed = ring, True
            self._changed.notify()
        return True

    def nudge(self) -> None:
        """Something about the ring has changed."""
        with self._changed:
            self._changed.notify()

    def stop(self, deadline_s: float) -> None:
        """Take no more, send what waits, wait for the answers until the (monotonic) deadline, say goodbye. Returns at once."""
        with self._changed:
            self._stopping = True
            self._outbox.append(Stop(deadline_s))
            self._changed.notify()

    def stalled(self) -> bool:
        """True if the sidecar owes an answer for longer than it may."""
        with self._changed:
            oldest = next(iter(self._unanswered.values()), None)
        return oldest is not None and time.monotonic() - oldest.at_s > self._limits.answer_s

    def answer(self, result: ingest_pb2.StepResult) -> None:
        """Book one answer. An answer without a batch id is for the oldest batch: answers come in the order of requests."""
        refused = result.outcome == ingest_pb2.OUTCOME_REJECTED
        with self._changed:
            batch_id = result.batch_id or next(iter(self._unanswered), "")
            if self._unanswered.pop(batch_id, None) is None:
                return
            self._moved_s = time.monotonic()
            self._books.settle(refused=refused)
            self._changed.notify()
        if refused:
            self._tell(f"batch_refused reason={result.reason[:_WORD]} field={result.field[:_WORD]}")

    def close(self) -> None:
        """Settle: unanswered batches are unknown, waiting ones dropped. Twice is fine."""
        with self._changed:
            self._closed = True
            unanswered = list(self._unanswered.values())
            self._unanswered.clear()
            self._books.lose(len(unanswered), sum(sent.tokens for sent in unanswered))
            self._drop(self._outbox.expire(math.inf))
            self._changed.notify()

    # the sender's side

    def messages(self) -> Iterator[bytes]:
        """What gRPC sends, in order; what goes by the ring is not among it. Ends after the goodbye, or when the link is closed.

        The ring is given back when this ends.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._agreed or self._closed, self._limits.agree_s)
            self._agreed = True
        try:
            yield from self._flow()
        finally:
            if self._ring is not None:
                self._ring.close()

    def _flow(self) -> Iterator[bytes]:
        while not self._closed:
            item = self._next()
            if item is None:
                yield from self._fall_back()
            elif isinstance(item, Stop):
                yield from self._farewell(item.deadline_s)
                return
            elif isinstance(item, Waiting):
                yield from self._send(item.step)
            elif isinstance(item, Finished):
                for raw in wire.finished_messages(self._engine_id, item.request_ids):
                    yield from self._say(raw)
            else:
                yield from self._say(self._report_message(item))

    def _next(self) -> Item | None:
        """What is to be sent now, for which there is room. None if the link is closed or the ring has ended."""
        with self._changed:
            self._wait(lambda: self._outbox.head is not None and self._open_for(self._outbox.head))
            return None if self._closed or self._ring_lost else self._outbox.pop()

    def _wait(self, done: Callable[[], bool], deadline_s: float = math.inf) -> bool:
        """Until done or the ring has ended, and steps that grow too old meanwhile are dropped. Under the lock.

        False if the link was closed, or that did not come in time.
        """
        while not self._closed:
            self._tend()
            if done() or self._ring_lost:
                return True
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._changed.wait(min(left_s, self._tend_in_s()))
        return False

    def _open_for(self, what: Item | BatchMessage | PlainMessage) -> bool:
        """By gRPC only batches are answered and bounded, by the ring every message takes a slot."""
        if isinstance(what, Stop):
            return True
        return self._window_open or (self._ring is None and not isinstance(what, Waiting | BatchMessage))

    @property
    def _window_open(self) -> bool:
        ring = self._ring
        return len(self._unanswered) < self._limits.unanswered if ring is None else ring.room

    @property
    def _quiet(self) -> bool:
        return not self._unanswered and (self._ring is None or self._ring.idle)

    @property
    def _ring_lost(self) -> bool:
        return self._ring is not None and self._ring.ended

    def _tend(self) -> None:
        """What time alone brings: a report is due, steps have grown too old. Under the lock."""
        now_s = time.monotonic()
        self._drop(self._outbox.expire(now_s - self._limits.queue_s))
        if now_s >= self._report_due_s and not self._outbox.reporting:
            self._report_due_s = now_s + self._limits.report_s
            self._outbox.append(self._report())  # behind the batches that it counts

    def _tend_in_s(self) -> float:
        due_s = math.inf if self._outbox.reporting else self._report_due_s
        next_s = min(due_s, self._outbox.oldest_s + self._limits.queue_s)
        return max(0.0, min(next_s - time.monotonic(), self._limits.report_s))

    def _drop(self, steps: list[CapturedStep]) -> None:
        for step in steps:
            self._books.drop(step.tokens)

    def _send(self, step: CapturedStep) -> Iterator[bytes]:
        self._in_hand = step.tokens
        try:
            for part in parts(step, MESSAGE_BYTES if self._ring is None else self._ring.part_bytes):
                yield from self._carry(BatchMessage(self._engine_id, f"{self._run}-{self._batches}", part))
                self._batches += 1
        except _ClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - states that cannot be encoded cost their own step only
            self._books.fail()
            self._tell("batch_not_encoded", error)
        finally:
            if self._in_hand:
                self._books.drop(self._in_hand)
                with self._changed:
                    self._outbox.correct(self._in_hand)

    def _say(self, raw: bytes, deadline_s: float = math.inf) -> Iterator[bytes]:
        """A message that is no batch."""
        with suppress(_ClosedError):
            yield from self._carry(PlainMessage(raw), deadline_s)

    def _carry(self, message: BatchMessage | PlainMessage, deadline_s: float = math.inf) -> Iterator[bytes]:
        """By the ring, or else to gRPC. Raises _ClosedError if the link is closed, or has no room in time."""
        with self._changed:
            if not self._wait(lambda: self._open_for(message), deadline_s):
                raise _ClosedError
        if self._ring is not None:
            with suppress(RingBrokenError):
                self._ring.put(message, partial(self._book, message))
                return
        yield from self._fall_back()
        raw = message.inline()
        self._book(message)
        yield raw

    def _book(self, message: BatchMessage | PlainMessage) -> None:
        """A batch that is as good as sent. Raises _ClosedError if the link was closed meanwhile: nobody would settle it."""
        if not isinstance(message, BatchMessage):
            return
        with self._changed:
            if self._closed:
                raise _ClosedError
            self._moved_s = time.monotonic()
            self._unanswered[message.batch_id] = _Sent(message.step.tokens, self._moved_s)
            self._books.send()
        self._in_hand -= message.step.tokens

    def _fall_back(self) -> Iterator[bytes]:
        """From a ring that has ended to gRPC. What lies in its slots unanswered goes again: the sidecar knows what it has had."""
        with self._changed:
            if self._ring is None or self._closed:
                return
            ring, self._ring = self._ring, None
            now_s = time.monotonic()
            for batch_id, sent in self._unanswered.items():
                self._unanswered[batch_id] = replace(sent, at_s=now_s)
        self._tell("transport=grpc why=the ring has ended")
        try:
            yield from ring.rescue()
        finally:
            ring.close()

    def _farewell(self, deadline_s: float) -> Iterator[bytes]:
        yield from self._settle(deadline_s)
        yield from self._say(self._report_message(self._report()), deadline_s)
        yield from self._say(wire.goodbye_message(self._engine_id), deadline_s)
        if self._ring is not None:  # whoever leaves it takes what was not read along
            yield from self._settle(deadline_s)

    def _settle(self, deadline_s: float) -> Iterator[bytes]:
        """Until everything was answered, or the deadline."""
        while True:
            with self._changed:
                settled = self._wait(lambda: self._quiet, deadline_s)
            if not (settled and self._ring_lost):
                return
            yield from self._fall_back()

    def _tell(self, event: str, error: Exception | None = None) -> None:
        """Log the first of its kind on this stream; the others are counted."""
        if event not in self._told and len(self._told) < _KINDS:
            self._told.add(event)
            log.warning(event, exc_info=error)

    def _report(self) -> Report:
        return Report(self._books.traffic.counts(), self._books.counts())

    def _report_message(self, report: Report) -> bytes:
        return wire.traffic_message(wire.traffic_report(self._engine_id, report.corrected(), report.ledger))
