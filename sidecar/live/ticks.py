"""Ticks that closed in the hot worker, until the control process has come for them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Alarm

KEPT_TICKS = 64  # that wait for the control process; it asks several times a tick
_RUNS = 64  # of ticks that closed one after the other


Alarms = tuple[tuple[Alarm, tuple[str, ...]], ...]  # each with trace ids of sessions that bet for it


@dataclass(slots=True)
class StepCounts:
    """Steps of traffic since the last tick closed."""

    read: int = 0  # what the ladder kept from circuits among them
    refused: int = 0  # whole, for a value in them that is no number: how many tokens they had is not asked
    nameless: bool = False  # since the start no request has named a session


@dataclass(frozen=True, slots=True)
class ClosedTick:
    """Everything that a tick left, on its way to the control process. generation: of the plan in force."""

    number: int
    generation: int
    tick: int
    rows: tuple[TickRow, ...]
    alarms: Alarms
    steps: StepCounts


@dataclass(slots=True)
class TickCounts:
    """What became of ticks. All only grow."""

    closed: int = 0
    late: int = 0
    repeated: int = 0
    missed: int = 0
    lost: int = 0  # closed, and the control process did not come for them in time
    set_back: int = 0  # at which the clock was found set back, and detectors began anew


class ClosedTicks:
    """Bounded: where nobody comes, the oldest are given up and counted. Owned by the pipeline's thread."""

    def __init__(self) -> None:
        self.counts = TickCounts()
        self.steps = StepCounts()
        self._kept: deque[ClosedTick] = deque()
        self._number = 0
        self._runs: deque[tuple[int, int]] = deque(maxlen=_RUNS)  # first and last tick of each, the newest last

    def has(self, tick: int) -> bool:
        """Whether it has closed before. A clock that was ahead comes to such ticks again; their rows lie in the archive already."""
        return any(first <= tick <= last for first, last in self._runs)

    def add(self, generation: int, tick: int, rows: tuple[TickRow, ...], alarms: Alarms) -> None:
        self.counts.closed += 1
        begun = self._runs.pop()[0] if self._runs and self._runs[-1][1] == tick - 1 else tick
        self._runs.append((begun, tick))
        self._number += 1
        self._kept.append(ClosedTick(self._number, generation, tick, rows, alarms, self.steps))
        self.steps = StepCounts()
        if len(self._kept) > KEPT_TICKS:
            self._kept.popleft()
            self.counts.lost += 1

    def since(self, number: int) -> tuple[ClosedTick, ...]:
        """What closed after that one. What came before has arrived, and is given up here."""
        while self._kept and self._kept[0].number <= number:
            self._kept.popleft()
        return tuple(self._kept)
