"""What a test starts ends with it, however it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import until

WARDEN = str(Path(__file__).parent / "warden.py")
# A server like vLLM's at its worst: it ends when told, and leaves a child in a session of its own that does not.
SERVER = """
import json, os, signal, subprocess, sys
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
left = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
left.stdout.readline()
print(json.dumps([os.getpid(), left.pid]), flush=True)
signal.pause()
"""
TEST = """
import subprocess, sys, signal
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
signal.pause()
"""


def _ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _pids(line: str) -> list[int]:
    pids = json.loads(line)
    assert not any(_ended(pid) for pid in pids)
    return pids


def test_a_killed_test_leaves_no_process_behind():
    command = [sys.executable, "-c", TEST, sys.executable, WARDEN, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as test:
        pids = _pids(test.stdout.readline())
        test.kill()
        until(lambda: all(_ended(pid) for pid in pids))


def test_closing_the_pipe_ends_everything_before_the_warden_ends():
    command = [sys.executable, WARDEN, sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as warden:
        pids = _pids(warden.stdout.readline())
        warden.stdin.close()
        assert warden.wait(20) == 128 + 15
        assert all(_ended(pid) for pid in pids)


@pytest.mark.parametrize(("code", "status"), [("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_commands_status_is_the_wardens(code, status):
    with subprocess.Popen([sys.executable, WARDEN, sys.executable, "-c", code], stdin=subprocess.PIPE) as warden:
        assert warden.wait(20) == status


def test_nothing_that_is_not_its_own_is_ended():
    command = [sys.executable, WARDEN, sys.executable, "-c", SERVER]
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as warden,
    ):
        _pids(warden.stdout.readline())
        warden.stdin.close()
        warden.wait(20)
        assert other.poll() is None
        other.communicate(b"\n")
