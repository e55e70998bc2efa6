"""One stream to the sidecar, from its first answer to its end: what waits, what was sent, what came back."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap import wire
from sidecar.tap.step import CapturedStep
from sidecar.tap.traffic import TrafficMeter
from sidecar.types import TapLedgerCounts, UnseenReason

log = logging.getLogger("stethoscope.tap")
_WORD, _KINDS = 100, 32  # longest reason, and most kinds of refusal, that go to the log


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of everything that could grow or wait.

    queue_bytes is exceeded by one step at most: one that found the queue empty and is larger by itself.
    """

    queue_batches: int = 256
    queue_bytes: int = 64 << 20
    unanswered: int = 256
    answer_s: float = 15.0
    report_s: float = 0.5


@dataclass(slots=True)
class Books:
    """The tap's ledger over all its streams: sent = ok + refused + unknown once idle. Owner: ``lock``."""

    traffic: TrafficMeter
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    ok: int = 0
    refused: int = 0
    unknown: int = 0
    dropped: int = 0
    errors: int = 0

    def counts(self) -> TapLedgerCounts:
        with self.lock:
            return TapLedgerCounts(self.sent, self.ok, self.refused, self.unknown, self.dropped)

    def fail(self) -> None:
        with self.lock:
            self.errors += 1

    def drop(self, tokens: int) -> None:
        """A batch that never reached the wire."""
        with self.lock:
            self.dropped += 1
        self.traffic.miss(UnseenReason.TAP_DROPPED, tokens)


@dataclass(frozen=True, slots=True)
class _Sent:
    tokens: int
    at_s: float


@dataclass(frozen=True, slots=True)
class _Finished:
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Report:
    report: ingest_pb2.TrafficReport


@dataclass(frozen=True, slots=True)
class _Stop:
    deadline_s: float


class Link:
    """``offer`` is the engine's side, ``messages`` feeds gRPC, ``answer`` takes what came back, ``close`` settles the rest.

    Every step that was offered and taken ends as ok, refused or unknown (it was sent) or dropped (it was not).
    """

    def __init__(self, engine_id: str, books: Books, limits: LinkLimits) -> None:
        self._engine_id = engine_id
        self._books = books
        self._limits = limits
        self._queue: SimpleQueue[CapturedStep | _Finished | _Report | _Stop | None] = SimpleQueue()
        self._changed = threading.Condition(threading.Lock())  # guards everything below
        self._waiting_batches = 0
        self._waiting_bytes = 0
        self._unanswered: OrderedDict[str, _Sent] = OrderedDict()
        self._closed = False
        self._stopping = False
        self._run = uuid.uuid4().hex[:16]
        self._batches = 0
        self._told: set[str] = set()

    def offer(self, step: CapturedStep) -> bool:
        """Take the step if there is room. Never waits for more than the few instructions under the lock."""
        with self._changed:
            if self._closed or self._stopping or not self._room(step):
                return False
            self._waiting_batches += 1
            self._waiting_bytes += step.nbytes
            self._queue.put(step)
        return True

    def _room(self, step: CapturedStep) -> bool:
        """A step of any size fits into an empty queue: it is cut into messages on its way out, and would else never go."""
        if self._waiting_batches == 0:
            return True
        in_bytes = self._waiting_bytes + step.nbytes <= self._limits.queue_bytes
        return in_bytes and self._waiting_batches < self._limits.queue_batches

    def finish(self, request_ids: tuple[str, ...]) -> None:
        """Behind the batches offered so far. Dropped if the queue is full: the sidecar ends idle requests by itself."""
        with self._changed:
            if not self._closed and self._queue.qsize() < 2 * self._limits.queue_batches:
                self._queue.put(_Finished(request_ids))

    def stop(self, deadline_s: float) -> None:
        """Take no more, send what waits, wait for the answers until the (monotonic) deadline, say goodbye. Returns at once."""
        with self._changed:
            self._stopping = True
            self._queue.put(_Stop(deadline_s))

    def stalled(self) -> bool:
        """True if the sidecar owes an answer for longer than it may."""
        with self._changed:
            oldest = next(iter(self._unanswered.values()), None)
        return oldest is not None and time.monotonic() - oldest.at_s > self._limits.answer_s

    def messages(self) -> Iterator[bytes]:
        """What gRPC sends, in order. Ends after the goodbye, or when the link is closed.

        A report comes first: from then on the engine id is ours, and another process that introduces itself by it is refused.
        """
        due_s = time.monotonic()
        while not self._closed:
            try:
                item = self._queue.get(timeout=max(0.0, due_s - time.monotonic()))
            except Empty:
                item = None
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + self._limits.report_s
                self._queue.put(_Report(self._report()))  # behind the batches that it counts
            if isinstance(item, CapturedStep):
                yield from self._send(item)
            elif isinstance(item, _Report):
                yield wire.traffic_message(item.report)
            elif isinstance(item, _Finished):
                yield from wire.finished_messages(self._engine_id, item.request_ids)
            elif isinstance(item, _Stop):
                yield from self._farewell(item.deadline_s)
                return

    def answer(self, result: ingest_pb2.StepResult) -> None:
        """Book one answer. An answer without a batch id is for the oldest batch: answers come in the order of requests."""
        refused = result.outcome == ingest_pb2.OUTCOME_REJECTED
        with self._changed:
            batch_id = result.batch_id or next(iter(self._unanswered), "")
            if self._unanswered.pop(batch_id, None) is None:
                return
            with self._books.lock:
                self._books.refused += refused
                self._books.ok += not refused
            self._changed.notify_all()
        if refused:
            self._tell(f"batch_refused reason={result.reason[:_WORD]} field={result.field[:_WORD]}")

    def close(self) -> None:
        """Settle: unanswered batches are unknown, waiting ones dropped. Twice is fine."""
        with self._changed:
            self._closed = True
            unanswered = list(self._unanswered.values())
            self._unanswered.clear()
            with self._books.lock:
                self._books.unknown += len(unanswered)
            self._changed.notify_all()
        self._books.traffic.miss(UnseenReason.TAP_DROPPED, sum(sent.tokens for sent in unanswered))
        self._drain()
        self._queue.put(None)  # wakes messages()

    def _drain(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return
            if isinstance(item, CapturedStep):
                self._books.drop(item.tokens)

    def _send(self, step: CapturedStep) -> Iterator[bytes]:
        with self._changed:
            self._waiting_batches -= 1
            self._waiting_bytes -= step.nbytes
        left = step.tokens
        try:
            for part in wire.parts(step):
                batch_id = f"{self._run}-{self._batches}"
                self._batches += 1
                message = wire.batch_message(self._engine_id, batch_id, part)
                if not self._post(batch_id, part.tokens):
                    break
                left -= part.tokens
                yield message
        except Exception as error:  # noqa: BLE001 - states that cannot be encoded cost their own step only
            self._books.fail()
            self._tell("batch_not_encoded", error)
        finally:
            if left:
                self._books.drop(left)

    def _post(self, batch_id: str, tokens: int) -> bool:
        """Wait for room among the unanswered, then book the batch as sent. False if the link was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._unanswered) < self._limits.unanswered)
            if self._closed:
                return False
            self._unanswered[batch_id] = _Sent(tokens, time.monotonic())
            with self._books.lock:
                self._books.sent += 1
        return True

    def _farewell(self, deadline_s: float) -> Iterator[bytes]:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._unanswered, deadline_s - time.monotonic())
        if not self._closed:
            yield wire.traffic_message(self._report())
            yield wire.goodbye_message(self._engine_id)

    def _tell(self, event: str, error: Exception | None = None) -> None:
        """Log the first of its kind on this stream; the others are counted."""
        if event not in self._told and len(self._told) < _KINDS:
            self._told.add(event)
            log.warning(event, exc_info=error)

    def _report(self) -> ingest_pb2.TrafficReport:
        return wire.traffic_report(self._engine_id, self._books.traffic.counts(), self._books.counts())
