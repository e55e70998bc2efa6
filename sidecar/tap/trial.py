"""A self-test's findings: of each tap point, whether made-up tokens gave states before the first request did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple, TypeAlias

from sidecar.types import TapPoint


class Outcome(Enum):
    """What a self-test says of a tap point."""

    CAME = "states come"
    REFUSED = "refused"
    NOT_TESTED = "not tested"


class Finding(NamedTuple):
    """why: for people; empty if states came."""

    outcome: Outcome
    why: str = ""


Findings: TypeAlias = Mapping[TapPoint, Finding]


def not_tested(points: Iterable[TapPoint], why: str) -> Findings:
    """Nothing was tried, for this reason."""
    return dict.fromkeys(points, Finding(Outcome.NOT_TESTED, why))


def summary(findings: Findings) -> str:
    """How many tap points have which outcome, in one line.

    >>> summary({TapPoint(0): Finding(Outcome.CAME), TapPoint(1): Finding(Outcome.REFUSED, "no states came")})
    'states_come=1 refused=1 not_tested=0'
    """
    outcomes = [one.outcome for one in findings.values()]
    return " ".join(f"{one.value.replace(' ', '_')}={outcomes.count(one)}" for one in Outcome)
