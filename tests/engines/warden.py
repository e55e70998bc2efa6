"""Run a command and see to its end, and to that of everything that it started, however our own parent ends.

``python warden.py COMMAND...``: our standard input is a pipe from the parent that nobody writes to. When it closes,
because the parent closed it or died in whatever way, the command is told to end, and after a while made to. Ends with its status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PATIENCE_S = 20.0
_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(child,), daemon=True).start()
    status = child.wait()
    kill_descendants()
    return status if status >= 0 else 128 - status


def adopt_orphans() -> None:
    """From here on whatever loses its parent among our descendants becomes our child, in whatever group it put itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _end_with_parent(child: subprocess.Popen[bytes]) -> None:
    os.read(0, 1)
    child.terminate()
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()


def kill_descendants() -> None:
    """Kill our children, and the orphans that this leaves us with, until there are none."""
    while left := _children():
        for pid in left:
            os.kill(pid, signal.SIGKILL)  # ours, and not yet waited for: the number cannot be another's
            os.waitpid(pid, 0)


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended has no children
            found += map(int, (task / "children").read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
