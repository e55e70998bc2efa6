"""Whether there is too much work, just enough, or room: judged over a window of steps, never by one of them."""

from __future__ import annotations

from enum import Enum

from sidecar.config import Ladder as LadderConfig

# A page fault or another process's garbage collection (107 ms were measured) makes one step slow and those behind it late.
# However bad one fifth of a window was, it counts for twice the share that leads a rung down: it takes three bad fifths.
_SLICES, _AT_MOST = 5, 2.0
_NOT_CHANCE = 5  # of 50 steps with one in a hundred slow, so many are slow in one window of 7,000
_LONGEST = 10  # windows that few steps may take to be enough


class Load(Enum):
    """What a window of steps shows."""

    ROOM = "room"
    TIGHT = "tight"
    OVER = "over"


class Pressure:
    """Steps by how they kept the budget and how long they waited for their turn.

    A window is ``window_s`` long, and longer if fewer steps came than can be told from chance: up to ten times as long.
    A number that is not a number counts as over. Not thread-safe.
    """

    def __init__(self, config: LadderConfig, now_s: float) -> None:
        self._window_s, self._share = config.window_s, config.over_share
        self._high, self._low = config.high, config.low
        self._late_s = config.queue_age_ms / 1e3
        self._near_s = self._late_s * config.low / config.high
        self.why = ""  # of the last window that was over, in plain words
        self._fresh_s = self._until_s = now_s
        self._begin(now_s)

    def restart(self, now_s: float) -> None:
        """Another rung is in force: what was seen before says nothing of it, and neither do those that waited since then."""
        self._fresh_s, self._until_s = now_s, now_s + self._window_s
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._begun_s = now_s
        self._steps = self._over = self._near = 0.0  # the window, as it is weighed
        self._slow = self._late = 0  # the window, for people
        self._waited_s = 0.0
        self._cut(now_s)

    def _cut(self, now_s: float) -> None:
        self.due_s = now_s + self._window_s / _SLICES
        self._slice_steps = self._slice_over = self._slice_near = 0

    def add(self, budget_use: float, queue_age_s: float, now_s: float) -> None:
        """One step: the share of the budget that it took, and how long it had waited for its turn."""
        if budget_use <= self._low and queue_age_s <= self._near_s:
            self._slice_steps += 1
        elif now_s >= self._until_s or now_s - queue_age_s >= self._fresh_s:
            self._add_near(budget_use, queue_age_s)

    def _add_near(self, budget_use: float, queue_age_s: float) -> None:
        slow, late = not budget_use <= self._high, not queue_age_s <= self._late_s
        self._slice_steps += 1
        self._slice_near += 1
        self._slice_over += slow or late
        self._slow += slow
        if late:
            self._late += 1
            self._waited_s += queue_age_s

    def weigh(self, now_s: float) -> Load | None:
        """What the window shows, if it is over; the next one begins then. To be asked from ``due_s`` on."""
        self._fold(now_s)
        if not self._ripe(now_s - self._begun_s):
            return None
        load = Load.ROOM
        if self._many(self._over):
            load, self.why = Load.OVER, self._words()
        elif self._many(self._near):
            load = Load.TIGHT
        self._begin(now_s)
        return load

    def _fold(self, now_s: float) -> None:
        most = max(1.0, _AT_MOST * self._share * self._slice_steps)
        self._steps += self._slice_steps
        self._over += min(self._slice_over, most)
        self._near += min(self._slice_near, most)
        self._cut(now_s)

    def _ripe(self, age_s: float) -> bool:
        if age_s < self._window_s:
            return False
        enough = self._steps * self._share >= _NOT_CHANCE or self._many(self._over)
        return enough or not self._steps or age_s >= _LONGEST * self._window_s

    def _many(self, steps: float) -> bool:
        return steps >= max(_NOT_CHANCE, self._share * self._steps)

    def _words(self) -> str:
        if self._late > self._slow:
            return f"waiting {1e3 * self._waited_s / self._late:.0f} ms for a turn"
        return f"{self._slow / self._steps:.0%} of steps over budget".replace("%", " %")
