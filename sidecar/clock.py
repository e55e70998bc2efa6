"""Time, injected: code asks a Clock, tests advance one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, Unix nanoseconds for what people read."""

    def monotonic_s(self) -> float: ...

    def unix_ns(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def unix_ns(self) -> int:
        return time.time_ns()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told.

    >>> clock = ManualClock(); clock.advance(2.5); clock.monotonic_s()
    2.5
    """

    now_s: float = 0.0
    epoch_ns: int = 1_700_000_000_000_000_000

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    def monotonic_s(self) -> float:
        return self.now_s

    def unix_ns(self) -> int:
        return self.epoch_ns + int(self.now_s * 1e9)
