"""What bounds a tap."""

from __future__ import annotations

import os
from dataclasses import dataclass

QUEUE_VARIABLE = "STETHOSCOPE_QUEUE_S"


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of everything that could grow or wait.

    queue_bytes is exceeded by one step at most: one that found the queue empty and is larger by itself.
    """

    queue_batches: int = 256
    queue_bytes: int = 64 << 20
    queue_s: float = 0.25  # a step that waited longer is of less use than the next one
    unanswered: int = 4  # by gRPC; by a ring its slots are the bound
    agree_s: float = 1.0  # for a ring to be agreed on, before anything is sent
    answer_s: float = 15.0
    report_s: float = 0.5


def limits_from_environment() -> LinkLimits:
    """For a tap that nobody constructs: $STETHOSCOPE_QUEUE_S. Raises ValueError, naming it, if it is no positive number."""
    told = os.environ.get(QUEUE_VARIABLE, "")
    if not told:
        return LinkLimits()
    try:
        queue_s = float(told)
    except ValueError:
        queue_s = 0.0
    if not 0.0 < queue_s < 3600.0:
        raise ValueError(f"{QUEUE_VARIABLE}: {told!r} is not a number of seconds over 0 and below 3600")
    return LinkLimits(queue_s=queue_s)
