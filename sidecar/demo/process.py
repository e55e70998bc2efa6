"""A child process of the demo: its output in a file, its end certain."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class DemoError(Exception):
    """The demo cannot go on; the text is for the person in front of it."""


class Child:
    """One program of the demo, in a process group of its own so that Ctrl-C reaches only us and we end it in order."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
                start_new_session=True,
            )

    def check(self) -> None:
        """Raises DemoError, with the end of its log, if it is no longer there."""
        status = self._process.poll()
        if status is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise DemoError(f"the {self.name} ended with status {status}; the end of its log:\n{tail}")

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, check: Callable[[], None]) -> None:
        """Raises DemoError if it ends first or is not ready in time, and whatever ``check`` raises between two looks."""
        ends_s = time.monotonic() + timeout_s
        while not ready():
            check()
            self.check()
            if time.monotonic() > ends_s:
                raise DemoError(f"the {self.name} was not ready after {timeout_s:.0f} s; its log is {self.log}")
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM, patience_s: float = 20.0) -> int:
        """Ask it to end, then insist; its whole group is gone afterwards. Returns its exit status. Twice is fine."""
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._kill_group()
        status = self._process.wait()
        self._kill_group()  # what it may have left behind
        return status

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
