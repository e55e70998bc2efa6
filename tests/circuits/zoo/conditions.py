"""What happens in each condition: which model answers, and what comes in tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tests.circuits.zoo.served import TICK_S
from tests.circuits.zoo.texts import FOREIGN, PLAIN, REPEATING
from tests.circuits.zoo.variants import ABLATED, INT8, SCALED, SOUND, TUNED

SESSIONS = 20  # a tick, on average
SHARE = 0.5  # of sessions that repeat a text
SWING = 0.4  # of that share, over a day
_DAY = 86_400 // TICK_S
_BURSTS, _BURST, _ALIKE, _FLOOD = 0.05, 10, 30, 3


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One tick: how many requests of each kind, and which of them are of one session. groups: (kind, requests of that session)."""

    groups: tuple[tuple[str, int], ...]


# Gets the tick, counted from Monday, whether the change has come, and a source of chance.
Traffic = Callable[[int, bool, np.random.Generator], Arrivals]


@dataclass(frozen=True, slots=True)
class Condition:
    """variant: of the model once the change has come. history: what the baseline's week is like; traffic: what a run is like."""

    variant: str
    history: Traffic
    traffic: Traffic


def sound(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    del tick, changed
    return _mixed(draws, SHARE)


def by_hour(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    """Afternoons repeat more than nights do."""
    del changed
    return _mixed(draws, SHARE - SWING * float(np.cos(2 * np.pi * tick / _DAY)))


def stops(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    del tick
    return _mixed(draws, 0.0 if changed else SHARE)


def bursts(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    """Now and then ten times as many sessions in a tick, and always one or two sessions of 30 requests, which are alike."""
    del tick, changed
    many = SESSIONS * (_BURST if draws.random() < _BURSTS else 1)
    alike = tuple((REPEATING if draws.random() < SHARE else PLAIN, _ALIKE) for _ in range(draws.poisson(1.5)))
    return Arrivals((*_mixed(draws, SHARE, many).groups, *alike))


def flood(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    """All sessions of one tenant repeat a text."""
    del tick
    many = int(draws.poisson(_FLOOD * SESSIONS)) if changed else 0
    return Arrivals((*_mixed(draws, SHARE).groups, *((REPEATING, 1),) * many))


def foreign(tick: int, changed: bool, draws: np.random.Generator) -> Arrivals:
    """Half of the sessions that do not repeat, and half of those that do, come in another language."""
    del tick
    groups = _mixed(draws, SHARE).groups
    if not changed:
        return Arrivals(groups)
    return Arrivals(tuple((FOREIGN if draws.random() < SHARE else kind, many) for kind, many in groups))


def _mixed(draws: np.random.Generator, share: float, sessions: float = SESSIONS) -> Arrivals:
    many = max(1, int(draws.poisson(sessions)))
    return Arrivals(tuple((REPEATING if one else PLAIN, 1) for one in draws.random(many) < share))


def names_of(arrivals: Arrivals, tick: int) -> Iterator[tuple[str, str]]:
    """Of each request its kind and its session."""
    for number, (kind, many) in enumerate(arrivals.groups):
        yield from ((kind, f"session {tick}.{number}"),) * many


CONDITIONS: Mapping[str, Condition] = {
    "control": Condition(SOUND, sound, sound),
    **{variant: Condition(variant, sound, sound) for variant in (ABLATED, SCALED, INT8, TUNED)},
    "traffic_stops": Condition(SOUND, sound, stops),
    "mix_by_hour": Condition(SOUND, by_hour, by_hour),
    "session_bursts": Condition(SOUND, sound, bursts),
    "tenant_floods": Condition(SOUND, sound, flood),
    "new_language": Condition(SOUND, sound, foreign),
}
