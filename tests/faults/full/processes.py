"""What is done to a process, and what can be seen of it from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.full.driven import POLL_S, pause

SPARE_THREADS = 8  # gRPC's pool starts another thread whenever none is idle at that moment, up to its own bound


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stopped on entry, going on at the end, whatever happens."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True)
class Holdings:
    """What a process holds that could leak."""

    descriptors: int
    threads: int
    rings: int  # mappings of shared rings
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Holdings:
        process = psutil.Process(pid)
        maps = Path(f"/proc/{pid}/maps").read_text()
        return cls(
            process.num_fds(), process.num_threads(), maps.count("memfd:stethoscope-ring"), process.memory_info().rss
        )

    def within(self, before: Holdings) -> bool:
        """No more of anything that is counted; memory is judged over many rounds."""
        threads = self.threads <= before.threads + SPARE_THREADS
        return self.descriptors <= before.descriptors and threads and self.rings <= before.rings


def until(done: Callable[[], bool], timeout_s: float, what: Callable[[], object] = lambda: "") -> float:
    """Wait for it; how long that took. Fails after the timeout, telling ``what``."""
    begun_s = time.monotonic()
    while not done():
        assert time.monotonic() - begun_s < timeout_s, what()
        pause(POLL_S)
    return time.monotonic() - begun_s
