"""Alarms in the control process: held while they cool, diagnosed once the canaries have answered, recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.circuits.watch import Alarm


class Cause(StrEnum):
    """What an alarm is about. The only values of the label ``cause``."""

    MODEL = "model"  # the canaries moved where the circuit is read
    TRAFFIC = "traffic"  # the canaries are quiet
    BOTH = "both"  # the model changed elsewhere, and that does not explain it
    DATA = "data"  # what the circuit reads is not whole
    UNKNOWN = "unknown"  # no canaries answered


class Canaries(StrEnum):
    """What the canaries say about one circuit."""

    QUIET = "quiet"
    MOVED = "moved"  # at this circuit
    MOVED_ELSEWHERE = "moved_elsewhere"
    SILENT = "silent"  # there are none, or they did not answer


def diagnose(canaries: Canaries, excluded_share: float) -> Cause:
    """excluded_share: of the tokens since the alarm's checkpoint, those that could not be read.

    >>> diagnose(Canaries.QUIET, 0.0), diagnose(Canaries.MOVED, 0.0), diagnose(Canaries.SILENT, 0.5)
    (<Cause.TRAFFIC: 'traffic'>, <Cause.MODEL: 'model'>, <Cause.DATA: 'data'>)
    """
    if not excluded_share <= MOST_EXCLUDED:
        return Cause.DATA
    return _CAUSES[canaries]


MOST_EXCLUDED = 0.01
_CAUSES = {
    Canaries.QUIET: Cause.TRAFFIC,
    Canaries.MOVED: Cause.MODEL,
    Canaries.MOVED_ELSEWHERE: Cause.BOTH,
    Canaries.SILENT: Cause.UNKNOWN,
}


@dataclass(slots=True)
class Raised:
    """An alarm, from the tick in which it was raised until it has cooled. cause: None until it is diagnosed."""

    alarm: Alarm
    trace_ids: tuple[str, ...]
    excluded_share: float
    may_page: bool
    ask_until_s: float  # so long do the canaries have time to answer
    rounds_before: int  # of canaries, that had begun: they may have read the model as it was
    baseline: str  # digest of the one that it was raised against
    cause: Cause | None = None
    record: str = ""  # its file's name, once it is written

    @property
    def key(self) -> tuple[str, str]:
        return self.alarm.watched.circuit, self.alarm.watched.slice


@dataclass(slots=True)
class Alarms:
    """Those that wait for their diagnosis, those that have it and have not cooled, and how many there were. One thread's."""

    cool_down: int  # ticks
    waiting: list[Raised] = field(default_factory=list)
    newest: dict[tuple[str, str], Raised] = field(default_factory=dict)  # of each circuit and slice
    open: dict[tuple[str, str], Raised] = field(default_factory=dict)  # those of them that have not cooled
    counts: dict[tuple[str, str, str], int] = field(default_factory=dict)  # by circuit, slice and cause

    @property
    def standing(self) -> list[Raised]:
        """Those that have not cooled, diagnosed or not."""
        return [*self.open.values(), *self.waiting]

    def add(self, raised: Raised) -> None:
        self.waiting.append(raised)

    def restore(self, raised: Raised) -> None:
        """One that stood before a restart. It is not counted again."""
        if raised.cause is None:
            self.add(raised)
        else:
            self.open[raised.key] = self.newest[raised.key] = raised

    def settle(self, ready: Callable[[Raised], Canaries | None]) -> list[Raised]:
        """Diagnose those whose canaries have answered: ``ready`` says what they say, None as long as they do not."""
        done, waiting = [], []
        for one in self.waiting:
            told = ready(one)
            if told is None:
                waiting.append(one)
                continue
            one.cause = diagnose(told, one.excluded_share)
            key = (*one.key, one.cause.value)
            self.counts[key] = self.counts.get(key, 0) + 1
            self.open[one.key] = self.newest[one.key] = one
            done.append(one)
        self.waiting = waiting
        return done

    def cool(self, tick: int) -> None:
        """Let go of those that have cooled."""
        for key, one in list(self.open.items()):
            if tick > one.alarm.tick + self.cool_down:
                del self.open[key]
