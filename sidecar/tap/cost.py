"""CPU time of the tap on the engine's own threads, as a share of the forward pass that it rides on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class TapCost(NamedTuple):
    """Thread CPU nanoseconds spent by the tap and by the forward passes without it, over ``steps`` passes."""

    tap_cpu_ns: int
    forward_cpu_ns: int
    steps: int


class _Local(threading.local):
    begun_ns: int | None = None
    before_ns: int = 0
    hooks_ns: int = 0


class Cost:
    """Wraps the tap's own functions. Reading the thread clock costs some 0.3 us a time: only on when asked for."""

    def __init__(self) -> None:
        self._local = _Local()
        self._lock = threading.Lock()
        self._tap_ns = self._forward_ns = self._steps = 0

    def read(self) -> TapCost:
        with self._lock:
            return TapCost(self._tap_ns, self._forward_ns, self._steps)

    def before(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` runs right before the forward pass."""
        return _timed(function, self._begin)

    def inside(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` runs within it."""
        return _timed(function, self._hook)

    def after(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` runs right after it, and books the step."""
        return _timed(function, self._book)

    def beside(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function`` runs on that thread before or behind these, outside of the pass: the tap's, and no step of its own."""
        return _timed(function, self._add)

    def _begin(self, start_ns: int, end_ns: int) -> None:
        self._local.begun_ns, self._local.before_ns, self._local.hooks_ns = end_ns, end_ns - start_ns, 0

    def _hook(self, start_ns: int, end_ns: int) -> None:
        self._local.hooks_ns += end_ns - start_ns

    def _add(self, start_ns: int, end_ns: int) -> None:
        with self._lock:
            self._tap_ns += end_ns - start_ns

    def _book(self, start_ns: int, end_ns: int) -> None:
        begun_ns, self._local.begun_ns = self._local.begun_ns, None
        if begun_ns is None:
            return
        hooks_ns = self._local.hooks_ns
        with self._lock:
            self._steps += 1
            self._tap_ns += self._local.before_ns + hooks_ns + end_ns - start_ns
            self._forward_ns += start_ns - begun_ns - hooks_ns


def _timed(function: Callable[P, R], book: Callable[[int, int], None]) -> Callable[P, R]:
    """book: gets the thread's CPU clock before and after each call, whatever becomes of it."""

    @wraps(function)
    def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        start_ns = time.thread_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            book(start_ns, time.thread_time_ns())

    return timed
