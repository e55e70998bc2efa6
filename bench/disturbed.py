"""A sidecar under a tapped engine that is slowed, frozen, or killed while requests run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from bench.serving import Served

_PIECE_S = 0.05
_KILLED_AFTER_S = 3.0  # a quarter of a round


@contextmanager
def slowed(served: Served) -> Iterator[None]:
    """Half of the time it stands still, in pieces of 50 ms."""
    over = threading.Event()
    processes = _processes(served)

    def hold() -> None:
        while not over.wait(_PIECE_S):
            for one in processes:
                one.suspend()
            over.wait(_PIECE_S)
            for one in processes:
                one.resume()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def frozen(served: Served) -> Iterator[None]:
    """It stands still, with its connections open."""
    processes = _processes(served)
    for one in processes:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            one.resume()


@contextmanager
def killed(served: Served, after_s: float = _KILLED_AFTER_S) -> Iterator[None]:
    """All of it is killed in the middle. Raises RuntimeError if what was to be disturbed is over before."""
    over, done = threading.Event(), threading.Event()
    processes = _processes(served)

    def kill() -> None:
        if not over.wait(after_s):
            for one in processes:
                one.send_signal(signal.SIGKILL)
            done.set()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if not done.is_set():
        raise RuntimeError(f"over within {after_s:g} s, before the sidecar was killed")


def _processes(served: Served) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in (served.worker_pid, served.control_pid)]
