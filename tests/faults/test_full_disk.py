"""A disk without room: the sidecar does not start on it, and one that runs already loses no count."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.faults.process import Process
from tests.service.client import Client

pytestmark = pytest.mark.process
EX_CONFIG = 78


def tiny_disk(folder: Path, *, full: bool) -> tuple[str, ...]:
    """A command that runs another one where ``folder`` is a disk of 64 KiB, which only the two of them see."""
    folder.mkdir()
    fill = 'cat /dev/zero >"$0/all" 2>/dev/null;' if full else ""
    script = f'mount -t tmpfs -o size=64k tmpfs "$0" || exit 1; {fill} exec "$@"'
    return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder))


def fill(folder: Path) -> None:
    with (folder / "all").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_sidecar_does_not_start_where_its_ledger_has_no_room(home, artifacts):
    data = home / "data"
    with Process(home, artifacts, "--set", f"data.folder={data}", within=tiny_disk(data, full=True)) as process:
        assert process.wait() == EX_CONFIG
        assert process.lines == ["sidecar: data.folder: the ledger cannot be used: No space left on device"]


def test_a_disk_that_fills_up_under_a_running_sidecar_costs_it_nothing(home, artifacts):
    data = home / "data"
    with (
        Process(home, artifacts, "--set", f"data.folder={data}", within=tiny_disk(data, full=False)) as process,
        Client(process) as client,
    ):
        client.register()
        client.good()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            fill(Path(f"/proc/{process.pid}/root{data}"))
        for _ in range(20):
            client.good()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        stopped = process.event("stopped")
        assert (stopped["received"], stopped["scored"], stopped["balanced"]) == (21, 21, True)
