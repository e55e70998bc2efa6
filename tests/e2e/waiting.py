"""Waiting for something to come true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(claim: Callable[[], bool], deadline_s: float = 15.0) -> float:
    """Seconds until the claim held; fails if it does not in time."""
    start = time.monotonic()
    while not claim():
        assert time.monotonic() - start < deadline_s, "did not come true in time"
        time.sleep(0.02)
    return time.monotonic() - start
