"""What bounds a tap."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

QUEUE_VARIABLE = "STETHOSCOPE_QUEUE_S"
LINGER_VARIABLE = "STETHOSCOPE_LINGER_S"
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of everything that could grow or wait.

    queue_bytes is exceeded by one step at most: one that found the queue empty and is larger by itself. Raises ValueError for
    a linger_s that is no number of seconds from 0.
    """

    queue_batches: int = 256
    queue_bytes: int = 64 << 20
    queue_s: float = 0.25  # a step that waited longer is of less use than the next one
    # So long may a step wait for others to go with it, 0.02 say: a sender that wakes at every step takes the interpreter from the
    # engine's thread each time. 0: every step goes at once, and a bad row costs its own step only. At most a quarter of queue_s.
    linger_s: float = 0.0
    unanswered: int = 4  # by gRPC; by a ring its slots are the bound
    agree_s: float = 1.0  # for a ring to be agreed on, before anything is sent
    answer_s: float = 15.0
    report_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.linger_s < math.inf:
            raise ValueError(f"linger_s: {self.linger_s!r} is not a number of seconds from 0")


def limits_from_environment() -> LinkLimits:
    """For a tap that nobody constructs: $STETHOSCOPE_QUEUE_S and $STETHOSCOPE_LINGER_S.

    Raises ValueError, naming the variable, for a queue_s that is not over 0, or a linger_s that is below it.
    """
    limits = LinkLimits()
    queue_s, linger_s = _told_s(QUEUE_VARIABLE, limits.queue_s), _told_s(LINGER_VARIABLE, limits.linger_s)
    if not 0.0 < queue_s < _HOUR_S:
        raise ValueError(
            f"{QUEUE_VARIABLE}: {_told(QUEUE_VARIABLE)!r} is not a number of seconds over 0 and below 3600"
        )
    if not 0.0 <= linger_s < _HOUR_S:
        raise ValueError(
            f"{LINGER_VARIABLE}: {_told(LINGER_VARIABLE)!r} is not a number of seconds from 0 and below 3600"
        )
    return replace(limits, queue_s=queue_s, linger_s=linger_s)


def _told(variable: str) -> str:
    return os.environ.get(variable, "")


def _told_s(variable: str, default: float) -> float:
    """NaN, which is in no range, for what is no number."""
    told = _told(variable)
    try:
        return float(told) if told else default
    except ValueError:
        return math.nan
