"""What waits to be sent, in order: bounded in number, bytes and age."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TypeAlias

from sidecar.tap.limits import LinkLimits
from sidecar.tap.step import CapturedStep
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import TapLedgerCounts, UnseenReason


@dataclass(frozen=True, slots=True)
class Waiting:
    step: CapturedStep
    since_s: float


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
        in_bytes = self._bytes + _weight(step) <= self._limits.queue_bytes
        if self._steps and not (in_bytes and len(self._steps) < self._limits.queue_batches):
            return False
        waiting = Waiting(step, now_s)
        self._items.append(waiting)
        self._steps.append(waiting)
        self._bytes += _weight(step)
        self.oldest_s = min(self.oldest_s, now_s)
        return True

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
        gone = self._steps.popleft()
        self._bytes -= _weight(gone.step)
        self.oldest_s = self._steps[0].since_s if self._steps else math.inf


def _weight(step: CapturedStep) -> int:
    return max(step.nbytes, step.held_bytes)
