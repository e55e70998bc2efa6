"""Log lines are an event name and fields, one JSON object a line, for changes of state; at most so many a second per event."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from enum import IntEnum

from sidecar.clock import Clock

_TEXT_CHARS = 300
_Field = str | int | float | bool | None


class Level(IntEnum):
    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Log:
    """Rate-limited by event name: what is over the limit is counted and told with the next line that passes.

    Fields are ours: no rows, prompts, tokens or paths. JSON escapes whatever else could break a line.
    """

    def __init__(
        self, clock: Clock, level: Level = Level.INFO, lines_per_s: int = 10, write: Callable[[str], None] = _to_stderr
    ) -> None:
        self._clock = clock
        self._level = level
        self._limit = lines_per_s
        self._write = write
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[int, int, int]] = {}  # event -> (second, lines in it, suppressed since the last)
        self.suppressed = 0

    def event(self, level: Level, name: str, **fields: _Field) -> None:
        """``name`` is a literal of ours, so the number of names is bounded."""
        if level < self._level:
            return
        with self._lock:
            second = int(self._clock.monotonic_s())
            at, lines, held = self._windows.get(name, (second, 0, 0))
            lines = lines if at == second else 0
            if lines >= self._limit:
                self._windows[name] = (second, lines, held + 1)
                self.suppressed += 1
                return
            self._windows[name] = (second, lines + 1, 0)
        line: dict[str, _Field] = {"ts": self._clock.unix_ns() / 1e9, "level": level.name.lower(), "event": name}
        if held:
            line["suppressed"] = held
        try:
            self._write(json.dumps({**line, **fields}))
        except (OSError, ValueError):  # whoever read our log is gone; whoever caused the line must not suffer for it
            with self._lock:
                self.suppressed += 1


class LibraryLog(logging.Handler):
    """Warnings and errors of the libraries as lines of ours, so that the log has one form and one rate."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = Level.ERROR if record.levelno >= logging.ERROR else Level.WARNING
        try:
            text = record.getMessage()
        except (LookupError, TypeError, ValueError):  # arguments that do not fit the message
            text = str(record.msg)
        kind = record.exc_info[0] if record.exc_info else None
        text = text if kind is None else f"{text}: {kind.__name__}"
        self._log.event(level, "library", logger=record.name, text=text[:_TEXT_CHARS])
