"""Ctrl-C and SIGTERM: an end at once while the demo starts, an orderly end once it runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

EX_INTERRUPTED = 130  # what a shell says of a command that ended by Ctrl-C
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedStart(BaseException):
    """Asked to end before everything was started. Like KeyboardInterrupt no error: nobody's ``except Exception`` stops it."""


class Stopping:
    """Inside, the two signals are ours; on leaving, they are again whose they were. For the main thread.

    The first signal during start-up raises InterruptedStart wherever the start-up is. Every other one only sets ``asked``,
    so that what was started is ended in order, however often Ctrl-C is pressed.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._raises = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first = not self.asked.is_set()
        self.asked.set()
        if first and self._raises:
            raise InterruptedStart

    def check(self) -> None:
        """Raises InterruptedStart if asked: where a signal was held back, or its exception lost in somebody's finaliser."""
        if self.asked.is_set():
            raise InterruptedStart

    def hold(self) -> None:
        """From here on signals only set ``asked``: the start is over, or is being undone."""
        self._raises = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Start something and note how to end it, without an interruption between the two."""
        self._raises = False
        yield
        self._raises = True
        self.check()
