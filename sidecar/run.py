"""Run the service in this process until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import logging
import signal
import threading

from sidecar.config import Config
from sidecar.log import Level, LibraryLog, Log
from sidecar.service import Sidecar

EX_SOFTWARE = 70


def run_until_signal(config: Config) -> int:
    """0 after a drained stop, 70 if the worker died: whoever supervises this process starts it again, counts and all.

    Raises what ``Sidecar.start`` raises. Must run on the main thread.
    """
    asked, lost = threading.Event(), threading.Event()

    def give_up() -> None:
        lost.set()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    sidecar = Sidecar(config, lost=give_up)
    own_stderr(sidecar.log)
    sidecar.start()
    asked.wait()
    sidecar.stop()
    return EX_SOFTWARE if lost.is_set() else 0


def own_stderr(log: Log) -> None:
    """Whatever else in this process would write to stderr becomes lines of our log."""
    logging.getLogger().addHandler(LibraryLog(log))
    logging.captureWarnings(capture=True)

    def died(what: threading.ExceptHookArgs) -> None:
        name = "unknown" if what.thread is None else what.thread.name
        log.event(Level.ERROR, "thread_died", thread=name, type=what.exc_type.__name__, text=str(what.exc_value)[:200])

    threading.excepthook = died
