"""What sound traffic is, hour of the week by hour: the share of a session's tokens that is engaged, and how many sessions come.

Frozen: nothing here adapts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sidecar.circuits.circuit import Floats

WEEK = 168  # hours
_MONDAY = 72  # hours from Monday to the Thursday on which the epoch began
# Silence is news after so many ticks (CircuitNoData in deploy/prometheus/rules.yml) in hours that bring as many sessions in them:
# if they come by chance, at the rate at which they came, that none of ten does happens once in 22,000 times (Poisson).
SILENT_TICKS = 30
EXPECTED = 10


@dataclass(frozen=True, slots=True)
class Band:
    """Where the conditional mean of a sound session lies: within [low, high], which lies within [0, 1]."""

    low: float
    high: float


def hour_of_week(at_s: int) -> int:
    """0 is Monday, midnight to one, UTC.

    >>> hour_of_week(0)  # a Thursday
    72
    """
    return (at_s // 3600 + _MONDAY) % WEEK


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Of one circuit and slice. mean m, half_width c: one for each hour of the week, or one for all (for a demo).

    The band is m -+ (c + tolerance), within [0, 1]. A half-width of 1 is an hour without traffic to learn from: no session then
    is evidence of anything. per_tick: sessions that a tick brings on average, of each hour or of all; no part of the band.
    """

    mean: Floats  # [168] or [1]
    half_width: Floats
    tolerance: float
    per_tick: Floats = field(default_factory=lambda: np.zeros(1))  # nobody is expected

    def __post_init__(self) -> None:
        if self.mean.shape not in ((WEEK,), (1,)) or self.half_width.shape != self.mean.shape:
            raise ValueError("want 168 means and half-widths, or one of each")
        if self.per_tick.shape not in (self.mean.shape, (1,)) or not (self.per_tick >= 0).all():
            raise ValueError("want for each hour, or for all, how many sessions come")
        shares = np.concatenate((self.mean, self.half_width))
        if not 0 < self.tolerance < 1 or not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError("want shares, and a tolerance between 0 and 1")

    def bucket(self, at_s: int) -> int:
        return hour_of_week(at_s) if len(self.mean) == WEEK else 0

    def band(self, at_s: int) -> Band:
        """At that many seconds since the epoch. Sums and differences only: the same bits on every machine."""
        at = self.bucket(at_s)
        mean, width = float(self.mean[at]), float(self.half_width[at]) + self.tolerance
        return Band(max(0.0, mean - width), min(1.0, mean + width))

    def expects(self, at_s: int) -> bool:
        """Whether that hour brings sessions enough for silence to be news: `EXPECTED` in `SILENT_TICKS` ticks.

        >>> share = np.array([0.5])
        >>> [Reference(share, share, 0.05, np.array([rate])).expects(0) for rate in (0.33, 0.34)]
        [False, True]
        """
        rate = float(self.per_tick[min(self.bucket(at_s), len(self.per_tick) - 1)])
        return rate * SILENT_TICKS >= EXPECTED

    def of_one_in(self, replicas: int) -> Reference:
        """The same for one of so many replicas: its share of the sessions, and the very band of all."""
        return replace(self, per_tick=self.per_tick / replicas)

    @property
    def tells_silence(self) -> float:
        """The share of the week's hours in which no session at all for a while is an alert."""
        return float(np.mean([self.expects(at * 3600) for at in range(WEEK)]))

    @property
    def sees_less(self) -> float:
        """The share of hours in which the mean could fall below the band at all: elsewhere an ablation is for canaries to see."""
        lows = np.array([self.band(at * 3600).low for at in range(WEEK)])
        return float((lows > 0).mean())
