"""A score that follows a request token by token: the lab's own form of what the service runs, one request at a time.

Each kind costs O(1) a token, or O(window) where a window has to be looked through, keeps as little, and after every token equals
`probes.pooling.aggregate` over all readings so far.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from probes.manifest import Aggregation, AggregationKind


class _Form(Protocol):
    """Takes in one reading after another; the score is of all that were taken in, and there is at least one."""

    @property
    def score(self) -> float: ...

    def push(self, reading: Sequence[float]) -> None: ...


class Running:
    """The score of one request so far, under any aggregation.

    >>> running = Running(Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN, window=2))
    >>> for reading in (0.0, 4.0, 2.0):
    ...     running.push([reading])
    >>> running.score
    3.0
    """

    def __init__(self, aggregation: Aggregation) -> None:
        self._columns = aggregation.columns
        self._form = _FORMS[aggregation.kind](aggregation)
        self._count = 0

    def push(self, reading_row: Sequence[float]) -> None:
        """Take in a token's readings, one a column. Raises ValueError for another number of them; nothing is taken in then."""
        reading = [float(value) for value in reading_row]
        if len(reading) != self._columns:
            raise ValueError(f"want {self._columns} readings a token, got {len(reading)}")
        self._form.push(reading)
        self._count += 1

    @property
    def score(self) -> float:
        """Raises ValueError before the first token: no reading is not a reading of 0."""
        if not self._count:
            raise ValueError("there is no score before the first token")
        return self._form.score


class _Mean:
    def __init__(self, _: Aggregation) -> None:
        self._sum, self._count = 0.0, 0

    @property
    def score(self) -> float:
        return self._sum / self._count

    def push(self, reading: Sequence[float]) -> None:
        self._sum += reading[0]
        self._count += 1


class _Last:
    def __init__(self, _: Aggregation) -> None:
        self.score = math.nan

    def push(self, reading: Sequence[float]) -> None:
        self.score = reading[0]


class _Ema:
    def __init__(self, aggregation: Aggregation) -> None:
        self._alpha = 2.0 / (aggregation.window + 1)
        self._begun = False
        self.score = math.nan

    def push(self, reading: Sequence[float]) -> None:
        self.score = self.score + self._alpha * (reading[0] - self.score) if self._begun else reading[0]
        self._begun = True


class _MaxEma:
    def __init__(self, aggregation: Aggregation) -> None:
        self._ema = _Ema(aggregation)
        self.score = -math.inf

    def push(self, reading: Sequence[float]) -> None:
        self._ema.push(reading)
        self.score = max(self.score, self._ema.score)


class _Window:
    """The highest value of any whole window; while there is none, the value of what there is."""

    def __init__(self, aggregation: Aggregation, value: Callable[[Sequence[Sequence[float]]], float]) -> None:
        self._newest: deque[Sequence[float]] = deque(maxlen=aggregation.window)
        self._whole = False  # whether the score is of a whole window already
        self._value = value
        self.score = -math.inf

    def push(self, reading: Sequence[float]) -> None:
        self._newest.append(reading)
        now = self._value(self._newest)
        self.score = max(self.score, now) if self._whole else now
        self._whole = len(self._newest) == self._newest.maxlen


def _max_rolling_mean(aggregation: Aggregation) -> _Window:
    return _Window(aggregation, lambda newest: math.fsum(reading[0] for reading in newest) / len(newest))


def _coherence(aggregation: Aggregation) -> _Window:
    def agreed(newest: Sequence[Sequence[float]]) -> float:
        highest = sorted((reading[0] for reading in newest), reverse=True)
        return highest[min(aggregation.agree, len(highest)) - 1]

    return _Window(aggregation, agreed)


def _max_rolling_attention(aggregation: Aggregation) -> _Window:
    return _Window(aggregation, _attend)


def _attend(newest: Sequence[Sequence[float]]) -> float:
    peak = max(query for _, query in newest)
    shares = [math.exp(query - peak) for _, query in newest]
    return sum(share * value for share, (value, _) in zip(shares, newest, strict=True)) / sum(shares)


class _Attention:
    """Sums relative to the highest query so far: when a higher one comes, both are scaled down to it."""

    def __init__(self, _: Aggregation) -> None:
        self._peak, self._values, self._shares = -math.inf, 0.0, 0.0

    @property
    def score(self) -> float:
        return self._values / self._shares

    def push(self, reading: Sequence[float]) -> None:
        value, query = reading
        if query > self._peak:
            scale = math.exp(self._peak - query)
            self._values, self._shares, self._peak = self._values * scale, self._shares * scale, query
        share = math.exp(query - self._peak)
        self._values += share * value
        self._shares += share


class _Multimax:
    def __init__(self, aggregation: Aggregation) -> None:
        self._best = [-math.inf] * aggregation.heads

    @property
    def score(self) -> float:
        return sum(self._best)

    def push(self, reading: Sequence[float]) -> None:
        self._best = [max(pair) for pair in zip(self._best, reading, strict=True)]


_FORMS: Mapping[AggregationKind, Callable[[Aggregation], _Form]] = MappingProxyType(
    {
        AggregationKind.MEAN: _Mean,
        AggregationKind.LAST: _Last,
        AggregationKind.EMA: _Ema,
        AggregationKind.MAX_EMA: _MaxEma,
        AggregationKind.MAX_ROLLING_MEAN: _max_rolling_mean,
        AggregationKind.COHERENCE: _coherence,
        AggregationKind.ATTENTION: _Attention,
        AggregationKind.MAX_ROLLING_ATTENTION: _max_rolling_attention,
        AggregationKind.MULTIMAX: _Multimax,
    }
)
