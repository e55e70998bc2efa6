"""What bounds a tap."""

from __future__ import annotations

from dataclasses import dataclass


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
