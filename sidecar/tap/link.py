"""One stream to the sidecar, from its first answer to its end: what waits, what was sent, what came back."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.batch import BatchMessage, PlainMessage
from sidecar.tap.books import Books
from sidecar.tap.joined import Joined
from sidecar.tap.limits import LinkLimits
from sidecar.tap.outbox import Finished, Item, Outbox, Report, Stop, Waiting, joined
from sidecar.tap.pace import Pace
from sidecar.tap.ring_post import RingPost
from sidecar.tap.step import CapturedStep

log = logging.getLogger("stethoscope.tap")
_WORD, _KINDS = 100, 32  # longest reason, and most kinds of refusal, that go to the log


class LinkClosedError(Exception):
    """Nothing is sent on this link any more."""


@dataclass(frozen=True, slots=True)
class _Sent:
    tokens: int
    at_s: float


class Link:
    """``offer`` is the engine's side, ``next`` and ``book`` the sender's, ``answer`` takes what came back, ``close`` settles.

    Every step that was offered and taken ends as ok, refused or unknown (it was sent) or dropped (it was not).
    """

    def __init__(self, books: Books, limits: LinkLimits) -> None:
        self._books = books
        self._limits = limits
        self._changed = threading.Condition(threading.Lock())  # guards everything below; the sender alone waits
        self._outbox = Outbox(limits)
        self._pace = Pace(min(limits.linger_s, limits.queue_s / 4))  # what lingers is not to look congested
        self._heeds_answers = False  # the sender waits for room, or for the last answers
        self._unanswered: OrderedDict[str, _Sent] = OrderedDict()
        self._moved_s = math.inf  # when a batch was last sent or answered
        self._closed = False
        self._stopping = False
        self._agreed = False  # on how messages go
        self._ring: RingPost | None = None  # set once, before agreed; taken away by the sender
        self._report_due_s = time.monotonic() + limits.report_s
        self._told: set[str] = set()
        self._outbox.append(self.report())  # first of all: from then on the sidecar keeps the engine id for us

    # the engine's side

    def offer(self, step: CapturedStep) -> bool:
        """Take the step if there is room. Never waits for more than the few instructions under the lock."""
        with self._changed:
            now_s = time.monotonic()
            if self._closed or self._stopping or not self._outbox.add(step, now_s):
                return False
            first = self._heeds_answers and self._outbox.oldest_s == now_s  # it may grow too old while the sender waits
            if first or self._pace.must_wake(-math.inf if self._outbox.plenty else now_s):
                self._pace.awake()
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
            if self._pace.must_wake(time.monotonic()):
                self._pace.awake()
                self._changed.notify()

    # the client's side

    def hurry(self) -> None:
        """Somebody waits for verdicts: from here on every step goes at once."""
        with self._changed:
            self._pace.hurry()
            self._changed.notify()

    def agree(self, ring: RingPost | None) -> bool:
        """Messages go by this ring, which becomes the link's, or by gRPC. False if that is settled already."""
        with self._changed:
            if self._agreed or self._closed:
                return False
            self._ring, self._agreed = ring, True
            self._changed.notify()
        return True

    def nudge(self) -> None:
        """Something about the ring has changed: a slot is free, or it has ended."""
        with self._changed:
            if self._heeds_answers or self._ring_lost:
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
            if self._heeds_answers:
                self._changed.notify()
        if refused:
            self.tell(f"batch_refused reason={result.reason[:_WORD]} field={result.field[:_WORD]}")

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

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def ring(self) -> RingPost | None:
        """By which messages go; None: by gRPC."""
        return self._ring

    def await_way(self) -> None:
        """Until it is agreed how messages go, or for as long as that may take; by gRPC from then on."""
        with self._changed:
            self._changed.wait_for(lambda: self._agreed or self._closed, self._limits.agree_s)
            self._agreed = True

    def next(self) -> Finished | Report | Stop | Joined | None:
        """What is to be sent now, for which there is room. None if the link is closed or the ring has ended."""
        with self._changed:
            while not (self._closed or self._ring_lost or self._ready()):
                self._sleep()
            if self._closed or self._ring_lost:
                return None
            head = self._outbox.head
            assert head is not None  # it is ready
            if not isinstance(head, Waiting):
                self._outbox.pop()
                return head
            waiting = self._outbox.peek() if self._pace.lingers else (head,)
        return self._joined(waiting)

    def _joined(self, waiting: Sequence[Item]) -> Joined | None:
        """The steps at the head that go together. None if the link was closed meanwhile.

        They are looked at without the lock, which the engine's thread may want: nobody else takes steps out.
        """
        run = joined(waiting)
        with self._changed:
            if self._closed:
                return None
            self._outbox.take(len(run.steps))
            self._pace.sent(time.monotonic())
        return run

    def _ready(self) -> bool:
        """There is something to send, and room for it, and its time has come. Under the lock."""
        self._tend()
        head = self._outbox.head
        if head is None or not self._open_for(head):
            return False
        steps = isinstance(head, Waiting)
        due = not steps or self._stopping or self._outbox.plenty or not self._pace.lingers
        return due or self._pace.due_s(self._outbox.oldest_s) <= time.monotonic()

    def _sleep(self) -> None:
        """Until that may have changed. Under the lock."""
        now_s, head = time.monotonic(), self._outbox.head
        until_s = now_s + self._tend_in_s()
        if head is not None and not self._open_for(head):
            self._heeds_answers = True
        else:
            until_s = self._pace.sleep(now_s, until_s, self._outbox.oldest_s)
        self._changed.wait(max(0.0, until_s - now_s))
        self._heeds_answers = False
        self._pace.awake()

    def _wait(self, done: Callable[[], bool], deadline_s: float = math.inf) -> bool:
        """Until done or the ring has ended, and steps that grow too old meanwhile are dropped. Under the lock.

        False if the link was closed, or that did not come in time.
        """
        self._heeds_answers = True
        try:
            while not self._closed:
                self._tend()
                if done() or self._ring_lost:
                    return True
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, self._tend_in_s()))
            return False
        finally:
            self._heeds_answers = False

    def room_for(self, message: BatchMessage | PlainMessage, deadline_s: float) -> bool:
        """Wait for it. False if the link is closed, or there was none in time."""
        with self._changed:
            return self._wait(lambda: self._open_for(message), deadline_s)

    def settled(self, deadline_s: float) -> bool:
        """Wait until everything was answered. True if the ring has ended instead: there is more to be done."""
        with self._changed:
            return self._wait(lambda: self._quiet, deadline_s) and self._ring_lost

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
            self._outbox.append(self.report())  # behind the batches that it counts

    def _tend_in_s(self) -> float:
        due_s = math.inf if self._outbox.reporting else self._report_due_s
        next_s = min(due_s, self._outbox.oldest_s + self._limits.queue_s)
        return max(0.0, min(next_s - time.monotonic(), self._limits.report_s))

    def _drop(self, steps: list[CapturedStep]) -> None:
        for step in steps:
            self._books.drop(step.tokens)

    def book(self, message: BatchMessage) -> None:
        """A batch that is as good as sent. Raises LinkClosedError if nobody would settle it any more."""
        with self._changed:
            if self._closed:
                raise LinkClosedError
            self._moved_s = time.monotonic()
            self._unanswered[message.batch_id] = _Sent(message.step.tokens, self._moved_s)
            self._books.send()

    def lose(self, tokens: int) -> None:
        """A batch that was taken out, and could not be sent."""
        self._books.drop(tokens)
        with self._changed:
            self._outbox.correct(tokens)

    def leave_ring(self) -> RingPost | None:
        """The ring has ended: by gRPC from here on. Whoever gets it sends what lies in it again, which is answered from now."""
        with self._changed:
            if self._ring is None or self._closed:
                return None
            ring, self._ring = self._ring, None
            now_s = time.monotonic()
            for batch_id, sent in self._unanswered.items():
                self._unanswered[batch_id] = replace(sent, at_s=now_s)
        return ring

    def tell(self, event: str, error: Exception | None = None) -> None:
        """Log the first of its kind on this stream; the others are counted."""
        if event not in self._told and len(self._told) < _KINDS:
            self._told.add(event)
            log.warning(event, exc_info=error)

    def report(self) -> Report:
        return Report(self._books.traffic.counts(), self._books.counts())
