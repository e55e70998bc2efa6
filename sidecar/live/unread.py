"""How much of what came could not be read: what decides whether an alarm is about the data."""

from __future__ import annotations

from collections import deque

from sidecar.live.ticks import StepCounts
from sidecar.live.tickwire import ToldAlarm, ToldTick

_HISTORY = 256  # ticks: as far back as evidence goes


class Unread:
    """Tokens of each circuit and slice and steps of all, tick by tick. One thread's."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], deque[tuple[int, int, int]]] = {}  # tick, read, not read
        self._steps: deque[tuple[int, StepCounts]] = deque(maxlen=_HISTORY)

    def note(self, told: ToldTick) -> None:
        self._steps.append((told.tick, told.steps))
        for row in told.rows:
            known = self._tokens.setdefault((row.key.circuit, row.key.slice), deque(maxlen=_HISTORY))
            known.append((told.tick, row.single("rows"), row.single("non_finite")))

    def share(self, alarm: ToldAlarm) -> float:
        """Of the tokens since the alarm's checkpoint, those that could not be read.

        A step that was refused whole counts as one of the usual size: nobody has counted its tokens.
        """
        since = alarm.since.tick
        steps = [one for tick, one in self._steps if tick > since]
        tokens = [(rows, bad) for tick, rows, bad in self._tokens.get((alarm.circuit, alarm.slice), ()) if tick > since]
        refused = _share(sum(one.refused for one in steps), sum(one.read for one in steps))
        return refused + (1 - refused) * _share(sum(bad for _, bad in tokens), sum(rows for rows, _ in tokens))


def _share(bad: int, good: int) -> float:
    return bad / (bad + good) if bad else 0.0
