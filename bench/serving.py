"""Processes to measure: the sidecar as a user starts it, and what it is compared with."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.artifacts import write_artifacts

_START_S, _END_S = 60.0, 20.0
_PLAIN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Served:
    """A sidecar that answers."""

    address: str
    control_pid: int
    worker_pid: int
    metrics_port: int


@contextmanager
def home() -> Iterator[Path]:
    """A short-lived folder with a short path: a Unix socket's may have 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="stb-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def child(*command: str, keep: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """``python COMMAND``, single-threaded in its arithmetic; stderr is dropped. keep: descriptors that it inherits."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**_environment(), **_PLAIN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        pass_fds=keep,
    )
    with process, _ended(process):
        yield process


@contextmanager
def serving(artifacts: Path, *settings: str, address: str = "") -> Iterator[Served]:
    """A sidecar with its worker, at an address of its own or the one given.

    The ladder is off unless a setting says otherwise: it must not win by doing less.
    """
    with home() as folder:
        address = address or f"unix:{folder}/s.sock"
        options = {"ladder.enabled": "false", "artifacts.max_artifacts": "4096", "log.level": "INFO"}
        options |= dict(setting.split("=", 1) for setting in settings)
        command = [sys.executable, "-m", "sidecar.cli", "serve", "--address", address, "--artifacts", str(artifacts)]
        command += [
            "--metrics-port",
            "0",
            *(part for key, value in options.items() for part in ("--set", f"{key}={value}")),
        ]
        folder.chmod(0o700)
        process = subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True)
        with process, _ended(process):
            started = _Log(process).started()
            yield Served(address, process.pid, started["worker_pid"], started["metrics_port"])


@contextmanager
def serving_plan(width: int, taps: int, directions: int, *settings: str, threshold: float = 0.99) -> Iterator[Served]:
    """A sidecar with random directions, as many at each of the first blocks."""
    with home() as folder:
        write_artifacts(folder, width, taps, directions, threshold)
        with serving(folder, *settings) as served:
            yield served


class _Log:
    """Reads a sidecar's log for as long as it runs, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started: queue.Queue[dict[str, int]] = queue.Queue()
        self._last = ""
        threading.Thread(target=self._read, daemon=True).start()

    def started(self) -> dict[str, int]:
        found = self._started.get(timeout=_START_S)
        if not found:
            raise RuntimeError(f"the sidecar did not start: {self._last}")
        return found

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last = line
            if '"level":"error"' in line.replace(
                '": "', '":"'
            ):  # a bug of the sidecar's: whoever looks at the table must know
                sys.stderr.write(line)
            if '"event":"started"' in line.replace('": "', '":"'):
                self._started.put(json.loads(line))
        self._started.put({})


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _environment() -> dict[str, str]:
    """Ours, without settings that would change what is measured."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("STETHOSCOPE_", "OTEL_", "GRPC_"))}


def cpu_s(*pids: int) -> float:
    """CPU seconds of processes, all their threads, to the nanosecond: the usual counters tick every 10 ms.

    Threads that have ended are not counted.
    """
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
