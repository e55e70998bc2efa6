"""Waiting for what nobody tells: a condition that comes true in a thread or a process of its own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WITHIN_S = 20.0
_POLL_S = 0.005


def until(holds: Callable[[], object], within_s: float = WITHIN_S) -> float:
    """Poll until it holds; returns the seconds that took. Fails if it does not in time."""
    began_s = time.monotonic()
    waiting = threading.Event()
    while not holds():
        assert time.monotonic() - began_s < within_s, f"not within {within_s:g} seconds"
        waiting.wait(_POLL_S)
    return time.monotonic() - began_s
