"""What others would watch the same streams with: a number a tick in, an alarm or none out. After an alarm each begins anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.streams import Shares

# Months: enough to tell a false alarm in 40 months (PageHinkley had 2 in 80) from a tenth of that, with none of ours. A whole run
# of 80 months could not: lower bound over our upper bound was 1.7 for ADWIN 1e-6 and .07 for PageHinkley, less the hour.
RARE = 3000
_WINDOW = 100  # ticks that PSI and MMD look at
_PSI_BINS, _PSI_LIMIT = 10, 0.2  # the usual ones
_MMD_EVERY, _MMD_REFERENCE, _MMD_WINDOWS = 5, 300, 1000


class Detector(Protocol):
    """update: whether this value is an alarm."""

    def update(self, value: float) -> bool: ...


class River:
    """One of river's, as it comes."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def update(self, value: float) -> bool:
        self.made.update(value)
        return bool(self.made.drift_detected)


class Cusum:
    """Two-sided, of values standardised by sound traffic. k: slack, h: threshold, both in standard deviations."""

    def __init__(self, mean: float, deviation: float, k: float, h: float) -> None:
        self._mean, self._deviation, self._k, self._h = mean, deviation, k, h
        self._up = self._down = 0.0

    def update(self, value: float) -> bool:
        z = (value - self._mean) / self._deviation
        self._up = max(0.0, self._up + z - self._k)
        self._down = max(0.0, self._down - z - self._k)
        return max(self._up, self._down) > self._h


class Psi:
    """Population stability index of the last 100 ticks against the tenths of sound traffic; an alarm above 0.2."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self._counts = [0] * _PSI_BINS
        self._bins: deque[int] = deque()

    def update(self, value: float) -> bool:
        at = sum(value > edge for edge in self._edges)
        self._bins.append(at)
        self._counts[at] += 1
        if len(self._bins) > _WINDOW:
            self._counts[self._bins.popleft()] -= 1
        if len(self._bins) < _WINDOW:
            return False
        seen = np.maximum(np.array(self._counts) / _WINDOW, 1e-4)
        return float(((seen - 1 / _PSI_BINS) * np.log(seen * _PSI_BINS)).sum()) > _PSI_LIMIT


class Kernel:
    """Gaussian, as wide as the median distance of 300 sound ticks. limit: the 99.9 % point of distances of sound windows."""

    def __init__(self, sound: Shares) -> None:
        rng = np.random.default_rng(0)
        self._sound = rng.choice(sound, _MMD_REFERENCE)
        self._gamma = 1 / (2 * float(np.median(np.abs(self._sound[:, None] - self._sound))) ** 2)
        self._inside = float(self._of(self._sound, self._sound).mean())
        self.limit = float(np.quantile([self.distance(rng.choice(sound, _WINDOW)) for _ in range(_MMD_WINDOWS)], 0.999))

    def distance(self, values: Shares) -> float:
        own, other = self._of(values, values).mean(), self._of(values, self._sound).mean()
        return float(own + self._inside - 2 * other)

    def _of(self, one: Shares, other: Shares) -> Shares:
        made: Shares = np.exp(-self._gamma * (one[:, None] - other) ** 2)
        return made


class Mmd:
    """Kernel two-sample statistic of the last 100 ticks, every fifth tick."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._window: deque[float] = deque(maxlen=_WINDOW)
        self._seen = 0

    def update(self, value: float) -> bool:
        self._window.append(value)
        self._seen += 1
        if len(self._window) < _WINDOW or self._seen % _MMD_EVERY:
            return False
        return self._kernel.distance(np.array(self._window)) > self._kernel.limit


Maker = Callable[[], Detector]
Learn = Callable[[Shares], Maker]  # from the tick means of sound weeks


@dataclass(frozen=True, slots=True)
class Peer:
    """learn: once. months: of each kind that it can be run on in reasonable time.

    less_the_hour: months less the hour's reference; where it hardly ever alarms then, as many as it takes to tell how rarely.
    """

    learn: Learn
    months: float
    less_the_hour: float = 0.0

    def runs(self, *, residual: bool) -> float:
        """Months."""
        return max(self.months, self.less_the_hour if residual else 0.0)


def cusum(k: float, h: float) -> Learn:
    """k: slack, h: threshold, both in standard deviations of sound traffic."""

    def learn(sound: Shares) -> Maker:
        mean, deviation = float(sound.mean()), float(sound.std())
        return lambda: Cusum(mean, deviation, k, h)

    return learn


def _psi(sound: Shares) -> Maker:
    edges = np.quantile(sound, np.linspace(0, 1, _PSI_BINS + 1)[1:-1]).tolist()
    return lambda: Psi(edges)


def _mmd(sound: Shares) -> Maker:
    kernel = Kernel(sound)
    return lambda: Mmd(kernel)


def _river(name: str, **options: Any) -> Learn:
    """They learn as they go."""

    def learn(_: Shares) -> Maker:
        from river import drift

        return lambda: River(getattr(drift, name)(**options))

    return learn


# In the order of the table.
PEERS: Mapping[str, Peer] = {
    "CUSUM k=.5 h=5": Peer(cusum(0.5, 5.0), 80),
    "CUSUM k=.25 h=8": Peer(cusum(0.25, 8.0), 80),
    "river ADWIN .002": Peer(_river("ADWIN", delta=0.002), 80),
    "river ADWIN 1e-6": Peer(_river("ADWIN", delta=1e-6), 80, RARE),
    "river KSWIN": Peer(_river("KSWIN", seed=0), 0.5),
    "river PageHinkley": Peer(_river("PageHinkley"), 80, RARE),
    "PSI > .2": Peer(_psi, 8),
    "MMD": Peer(_mmd, 2),
}


def alarms(make: Maker, values: Shares, cool_down: int) -> list[int]:
    """The ticks of its alarms. values: NaN in a tick without sessions, which is passed over. It cools down as ours does."""
    detector, found, quiet_until = make(), [], -1
    for tick, value in enumerate(values.tolist()):
        if tick <= quiet_until or value != value:  # noqa: PLR0124 - NaN
            continue
        if detector.update(value):
            found.append(tick)
            detector, quiet_until = make(), tick + cool_down
    return found
