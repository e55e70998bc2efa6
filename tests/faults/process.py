"""A sidecar in a process of its own, started as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

START_S = 60.0  # a busy machine that imports everything for the first time


class Process:
    """``sidecar serve`` with its log. Every wait has a deadline; leaving the context ends it, however it is."""

    def __init__(
        self,
        home: Path,
        artifacts: Path,
        *flags: str,
        address: str = "",
        env: Mapping[str, str] | None = None,
        within: Sequence[str] = (),  # a command that becomes the one that follows it
    ):
        self._address = address or f"unix:{home}/run/sidecar.sock"
        command = [*within, sys.executable, "-m", "sidecar.cli", "serve", "--address", self._address]
        command += ["--artifacts", str(artifacts), "--metrics-port", "0", *flags]
        if not any("ladder" in flag for flag in flags):  # a busy machine is none of what most tests are about
            command += ["--set", "ladder.enabled=false"]
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**plain_environment(), **(env or {})},
        )
        self.lines: list[str] = []
        self._said_s: dict[str, float] = {}  # when an event was first read
        self._arrived = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(START_S)
        self._reader.join(START_S)
        if self._process.stderr is not None:
            self._process.stderr.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        return int(self.event("started")["worker_pid"])

    @property
    def ready_s(self) -> float:
        """From the start of the process to its word that it serves."""
        self.event("started")
        return self._said_s["started"] - self.started_s

    @property
    def killed_before(self) -> int:
        """Step batches that it found open in its ledger, and booked as process_killed."""
        self.event("started")
        found = self._find("killed_before")
        return 0 if found is None else int(found["step_batches"])

    def rss(self) -> int:
        """Resident bytes of both processes."""
        return sum(psutil.Process(pid).memory_info().rss for pid in (self.pid, self.worker_pid))

    @property
    def address(self) -> str:
        port = self.event("started").get("port")
        return self._address if port is None else f"127.0.0.1:{port}"

    @property
    def metrics_port(self) -> int:
        return int(self.event("started")["metrics_port"])

    def event(self, name: str, timeout_s: float = START_S) -> dict[str, Any]:
        """The first log line of this event; fails if the process ends before, or the time is over."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._find(name) or self._closed, timeout_s), self.lines
        found = self._find(name)
        assert found is not None, self.lines
        return found

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def gone(self, within_s: float) -> bool:
        """Whether it ends within the time."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, timeout_s: float = START_S) -> int:
        """The exit status, once everything that it wrote has been read."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def _find(self, name: str) -> dict[str, Any] | None:
        events = (json.loads(line) for line in self.lines if line.startswith("{"))
        return next((event for event in events if event.get("event") == name), None)

    def _read(self) -> None:
        if self._process.stderr is not None:
            for line in self._process.stderr:
                with self._arrived:
                    self.lines.append(line.rstrip("\n"))
                    if line.startswith("{"):
                        self._said_s.setdefault(json.loads(line).get("event", ""), time.monotonic())
                    self._arrived.notify_all()
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of a sidecar or of OpenTelemetry."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("STETHOSCOPE_", "OTEL_", "GRPC_"))}
