"""Run the service in this process until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import logging
import signal
import threading

from sidecar.log import Level, LibraryLog, Log
from sidecar.service import Sidecar


def run_until_signal(sidecar: Sidecar) -> int:
    """0 after a drained stop. Raises what ``Sidecar.start`` raises. Must run on the main thread."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    own_stderr(sidecar.log)
    sidecar.start()
    asked.wait()
    sidecar.stop()
    return 0


def own_stderr(log: Log) -> None:
    """Whatever else in this process would write to stderr becomes lines of our log."""
    logging.getLogger().addHandler(LibraryLog(log))
    logging.captureWarnings(capture=True)

    def died(what: threading.ExceptHookArgs) -> None:
        name = "unknown" if what.thread is None else what.thread.name
        log.event(Level.ERROR, "thread_died", thread=name, type=what.exc_type.__name__, text=str(what.exc_value)[:200])

    threading.excepthook = died
