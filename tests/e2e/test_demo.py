"""What a newcomer runs: the demo, as a process, to its end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
    assert len(got["signals"]) == 3
    for signal in got["signals"].values():
        assert signal["readings"] > 0
        assert 0 < signal["mean"] < 1
    assert {name: one["evidence"] for name, one in got["signals"].items()}["sentiment"] == "decodable"
    assert got["coverage"]
    for one in got["coverage"].values():
        assert one["expected"] == one["seen"] > 0
    assert got["spans_exported"] == got["requests"]
    ours = [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert ours == []


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
