"""Start another process of this package, with descriptors that it inherits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_HOT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_TOP_PAD_": "67108864"}


def spawn(module: str, descriptors: Sequence[int], told: bytes = b"") -> subprocess.Popen[bytes]:
    """``python -m MODULE DESCRIPTORS``, one thread for every library, ``told`` on standard input. The descriptors stay ours."""
    root = str(Path(__file__).parents[2])  # wherever this package was imported from, the other finds it there too
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", module, *map(str, descriptors)]
    env = {**os.environ, **_HOT, **_MALLOC, "PYTHONPATH": path}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, pass_fds=descriptors)  # noqa: S603 - ourselves
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already: whoever waits for it will see
        process.stdin.write(told)
        process.stdin.close()
    return process
