"""What waits to be sent, in order: bounded in number, bytes and age."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, TypeAlias

from sidecar.tap.joined import JOINED_BYTES, Joined
from sidecar.tap.limits import LinkLimits
from sidecar.tap.step import CapturedStep
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import TapLedgerCounts, UnseenReason


class Waiting(NamedTuple):
    step: CapturedStep
    since_s: float
    weight: int  # bytes of memory


@dataclass(frozen=True, slots=True)
class Finished:
    request_ids: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Report:
    """Counts that were taken when the report joined the queue: of the steps before it, and of none behind it."""

    traffic: TrafficCounts
    ledger: TapLedgerCounts
    dropped_tokens: int = 0  # of steps before it that were dropped since

    def corrected(self) -> TrafficCounts:
        unseen = dict(self.traffic.unseen)
        if self.dropped_tokens:
            unseen[UnseenReason.TAP_DROPPED] = unseen.get(UnseenReason.TAP_DROPPED, 0) + self.dropped_tokens
        return replace(self.traffic, unseen=tuple(unseen.items()))


@dataclass(frozen=True, slots=True)
class Stop:
    deadline_s: float


Item: TypeAlias = Waiting | Finished | Report | Stop


class Outbox:
    """Not thread-safe: its owner's lock guards it. ``oldest_s`` and ``full`` may be read without."""

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._items: deque[Item] = deque()
        self._steps: deque[Waiting] = deque()  # those among the items
        self._bytes = 0
        self._report: Report | None = None  # the one that waits; there is no use in two
        self.oldest_s = math.inf  # when the step that waits longest was added

    def __len__(self) -> int:
        return len(self._items)

    @property
    def head(self) -> Item | None:
        return self._items[0] if self._items else None

    @property
    def reporting(self) -> bool:
        """A report waits."""
        return self._report is not None

    @property
    def full(self) -> bool:
        """The next step would not be taken."""
        return len(self._steps) >= self._limits.queue_batches or self._bytes >= self._limits.queue_bytes

    def add(self, step: CapturedStep, now_s: float) -> bool:
        """Take the step if there is room. One of any size fits if none waits: it is cut into messages on its way out."""
        weight = step.held_bytes
        in_bytes = self._bytes + weight <= self._limits.queue_bytes
        if self._steps and not (in_bytes and len(self._steps) < self._limits.queue_batches):
            return False
        waiting = Waiting(step, now_s, weight)
        self._items.append(waiting)
        self._steps.append(waiting)
        self._bytes += weight
        if len(self._steps) == 1:
            self.oldest_s = now_s
        return True

    @property
    def plenty(self) -> bool:
        """There is nothing to be gained by waiting for more: a batch is full, or the queue is filling."""
        limits = self._limits
        return self._bytes >= min(JOINED_BYTES, limits.queue_bytes // 4) or 4 * len(self._steps) >= limits.queue_batches

    def append(self, item: Finished | Report | Stop) -> None:
        if isinstance(item, Report):
            self._report = item
        self._items.append(item)

    def pop(self) -> Item:
        """The head, which exists."""
        item = self._items.popleft()
        if isinstance(item, Waiting):
            self._forget()
        elif item is self._report:
            self._report = None
        return item

    def peek(self) -> tuple[Item, ...]:
        """What waits, the head first. Only ``pop``, ``take`` and ``expire`` take out of it."""
        return tuple(self._items)

    def take(self, steps: int) -> None:
        """Take out so many steps, of which there are as many before the next report. Ends of requests among them stay, as one."""
        passed: list[Finished] = []
        while steps:
            item = self._items.popleft()
            if isinstance(item, Finished):
                passed.append(item)
            else:
                self._forget()
                steps -= 1
        if passed:
            self._items.appendleft(Finished(tuple(chain.from_iterable(one.request_ids for one in passed))))

    def expire(self, before_s: float) -> list[CapturedStep]:
        """Take out the steps that were added before then; a report that counted them is corrected."""
        expired: list[CapturedStep] = []
        passed: list[Item] = []
        while self.oldest_s < before_s:
            item = self._items.popleft()
            if isinstance(item, Waiting):
                self._forget()
                expired.append(item.step)
                if self._report not in passed:  # it stands behind this step
                    self.correct(item.step.tokens)
            else:
                passed.append(item)
        self._items.extendleft(reversed(passed))
        return expired

    def correct(self, tokens: int) -> None:
        """A step that stood before everything that waits was dropped: the report, if one waits, has counted it."""
        if self._report is not None:
            self._report.dropped_tokens += tokens

    def _forget(self) -> None:
        self._bytes -= self._steps.popleft().weight
        self.oldest_s = self._steps[0].since_s if self._steps else math.inf


def joined(waiting: Iterable[Item]) -> Joined:
    """The first of what waits, a step, and as many behind it as go with it.

    The end of a request may be told behind later steps of others; a report counts those before it, and parts them.
    """
    run: Joined | None = None
    for item in waiting:
        if run is None:
            assert isinstance(item, Waiting)
            run = Joined(item.step)
        elif isinstance(item, Finished):
            run.end(item.request_ids)
        elif not isinstance(item, Waiting) or not run.add(item.step):
            break
    assert run is not None
    return run
