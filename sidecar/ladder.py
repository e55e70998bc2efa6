"""The degradation ladder: work is shed in a fixed order, one rung at a time, and taken up again with patience."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from sidecar.clock import Clock
from sidecar.config import Ladder as LadderConfig
from sidecar.pressure import Load, Pressure
from sidecar.snapshot import Rung
from sidecar.types import TapPoint

_ORDER = tuple(Rung)
_HELD = 4  # a way up has failed if it leads down again before so many times the wait that came before it


@dataclass(frozen=True, slots=True)
class Effects:
    """What a rung leaves of the work.

    sketches: whether circuits are sketched.
    account_every: one batch in so many goes into histograms and sketches, with this weight, so that estimates stay unbiased.
    token_stride: of a request's tokens, by absolute position, every so many-th is read.
    fewer_tap_points: only those that ``fewer`` leaves are read.
    sampling_factor: what taps are told to multiply the share of requests by.
    off: nothing is read.
    """

    sketches: bool = True
    account_every: int = 1
    token_stride: int = 1
    fewer_tap_points: bool = False
    sampling_factor: float = 1.0
    off: bool = False


# A quarter at each rung: a way up multiplies the work of its part by four at most. At ``off`` the taps go on with the lower
# sampling: what comes is counted as dropped, which no silence could be told from.
_SHED = Effects(sketches=False, account_every=4)
_EFFECTS: Mapping[Rung, Effects] = MappingProxyType(
    {
        Rung.FULL: Effects(),
        Rung.NO_SKETCHES: _SHED,
        Rung.TOKEN_STRIDE: replace(_SHED, token_stride=4),
        Rung.FEWER_TAP_POINTS: replace(_SHED, token_stride=4, fewer_tap_points=True),
        Rung.LOWER_SAMPLING: replace(_SHED, token_stride=4, fewer_tap_points=True, sampling_factor=0.25),
        Rung.OFF: replace(_SHED, token_stride=4, fewer_tap_points=True, sampling_factor=0.25, off=True),
    }
)


def shed(rung: Rung) -> Effects:
    """What is left of the work at a rung: everything that was shed above it stays shed.

    >>> shed(Rung.TOKEN_STRIDE)
    Effects(sketches=False, account_every=4, token_stride=4, fewer_tap_points=False, sampling_factor=1.0, off=False)
    """
    return _EFFECTS[rung]


def fewer(points: Sequence[TapPoint], verdict_points: Collection[TapPoint]) -> tuple[TapPoint, ...]:
    """The tap points that are read on when there is too much work: those whose signals decide, otherwise every second one.

    >>> [point.layer for point in fewer([TapPoint(1), TapPoint(2), TapPoint(3)], [])]
    [1, 3]
    """
    deciding = tuple(point for point in points if point in verdict_points)
    return deciding or tuple(points[::2])


class Ladder:
    """Where the sidecar stands between full work and none, driven by the steps it is told of. Owned by the hot worker.

    Down: in a window, ``over_share`` of the steps were over their budget or waited too long for a turn. Up: there was room
    for ``up_s`` without a break. A way up that soon leads down again is tried after twice the wait, up to ``max_up_s``; one
    that has held makes the sidecar forget. Each rung learns its own wait, so that one limit makes no other way up slow.
    """

    def __init__(self, config: LadderConfig, clock: Clock) -> None:
        now_s = clock.monotonic_s()
        self._config = config
        self._now = clock.monotonic_s
        self._pressure = Pressure(config, now_s)
        self._came_s = self._room_since_s = now_s
        self._climbed_s = dict.fromkeys(_ORDER, -math.inf)
        self._wait_s = dict.fromkeys(_ORDER, config.up_s)
        self.rung = Rung.FULL
        self.reason = ""  # why it stands where it stands; empty at the top
        self.changes = dict.fromkeys(_ORDER, 0)  # times that a rung was entered

    @property
    def since_s(self) -> float:
        """Seconds since it came to this rung."""
        return self._now() - self._came_s

    def step(self, budget_use: float, queue_age_s: float) -> Rung | None:
        """One batch came to its turn. Returns the rung if it is another one now.

        budget_use: the share of the step's budget that it took. queue_age_s: how long it had waited; of a batch that waited
        too long to be read, too. 0.3 us (0.8 us if over).
        """
        now_s = self._now()
        self._pressure.add(budget_use, queue_age_s, now_s)
        return self._look(now_s) if now_s >= self._pressure.due_s else None

    def tick(self) -> Rung | None:
        """Time passed: an idle sidecar has room. Returns the rung if it is another one now. For every wait that ended empty."""
        now_s = self._now()
        return self._look(now_s) if now_s >= self._pressure.due_s else None

    def _look(self, now_s: float) -> Rung | None:
        load = self._pressure.weigh(now_s)
        if load is None or not self._config.enabled:
            return None
        if load is Load.ROOM or self.rung is Rung.OFF:  # where nothing is read, steps say nothing: only time leads up
            return self._rise(now_s)
        self._room_since_s = now_s
        return self._sink(now_s) if load is Load.OVER else None

    def _sink(self, now_s: float) -> Rung:
        here, wait_s = self.rung, self._wait_s[self.rung]
        failed = now_s - self._climbed_s[here] < _HELD * wait_s
        self._wait_s[here] = min(2 * wait_s, self._config.max_up_s) if failed else self._config.up_s
        return self._move(1, self._pressure.why, now_s)

    def _rise(self, now_s: float) -> Rung | None:
        if self.rung is Rung.FULL:
            return None
        above = _ORDER[_ORDER.index(self.rung) - 1]
        if now_s - self._room_since_s < self._wait_s[above]:
            return None
        self._climbed_s[above] = now_s
        why = f"{now_s - self._room_since_s:.0f} s with room: on the way up"
        return self._move(-1, "" if above is Rung.FULL else why, now_s)

    def _move(self, by: int, why: str, now_s: float) -> Rung:
        self.rung = _ORDER[_ORDER.index(self.rung) + by]
        self.reason = why
        self.changes[self.rung] += 1
        self._came_s = self._room_since_s = now_s
        self._pressure.restart(now_s)
        return self.rung
