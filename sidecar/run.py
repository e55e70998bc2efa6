"""Run the service in this process until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import signal
import threading

from sidecar.service import Sidecar


def run_until_signal(sidecar: Sidecar) -> int:
    """0 after a drained stop. Raises what ``Sidecar.start`` raises. Must run on the main thread."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    sidecar.start()
    asked.wait()
    sidecar.stop()
    return 0
