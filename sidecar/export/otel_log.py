"""What the OpenTelemetry library says goes into our own log, as one line of JSON and rate-limited like every other."""

from __future__ import annotations

import logging

from sidecar.log import Level, Log

LIBRARY = "opentelemetry"
_TEXT_LIMIT = 300


class OtelLogBridge(logging.Handler):
    """Between attach() and detach(), lines of the library's loggers become events named ``otel_library``."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._propagate = True

    def attach(self) -> None:
        library = logging.getLogger(LIBRARY)
        self._propagate, library.propagate = library.propagate, False
        library.addHandler(self)

    def detach(self) -> None:
        library = logging.getLogger(LIBRARY)
        library.removeHandler(self)
        library.propagate = self._propagate

    def emit(self, record: logging.LogRecord) -> None:
        level = Level.ERROR if record.levelno >= logging.ERROR else Level.WARNING
        self._log.event(level, "otel_library", source=record.name, text=record.getMessage()[:_TEXT_LIMIT])
