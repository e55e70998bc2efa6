"""The worker in a process of its own: what it says, what it imports, and what happens when it freezes, dies or is misled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.builders import wire_batch
from tests.faults.process import Process
from tests.service.client import Client
from tests.service.ringed import Ringed
from tests.service_fixtures import private_folder, write_artifacts

pytestmark = pytest.mark.process
EX_SOFTWARE = 70
FOREIGN = ("grpc", "prometheus_client", "opentelemetry", "asyncio", "transformers", "sklearn")


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def served(home: Path) -> Iterator[tuple[Process, Client]]:
    with Process(home, write_artifacts(home)) as process, Client(process) as client:
        client.register()
        yield process, client


def test_the_hot_process_imports_no_server_no_exporter_and_no_event_loop():
    code = f"import sys, sidecar.worker.__main__; print([m for m in {FOREIGN!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_hot_process_has_one_thread(served):
    process, client = served
    client.good()
    status = Path(f"/proc/{process.worker_pid}/status").read_text()
    assert "Threads:\t1\n" in status


def test_the_status_says_in_plain_words_how_it_runs_and_why(served, capsys):
    process, client = served
    ringed = Ringed(client)
    assert ringed.batch(wire_batch()).outcome
    assert main(["status", "--address", process.address]) == 0
    told = capsys.readouterr().out
    for words in (
        "rung full: everything is read",
        "budget 6 ms a step; 99 in 100 steps use",
        "transport ring (shared memory): 1 engines",
        "mode raw: taps send hidden states, of 0.1 of the requests",
        "kernels, the fastest when they were tried on this machine: ",
        "worker: a process of its own; ledger in sidecar.sock.ledger",
    ):
        assert words in told, told
    ringed.close()


def test_a_frozen_worker_costs_a_scrape_less_than_a_second_and_the_page_says_how_old_it_is(served, capsys):
    process, client = served
    client.good()
    assert float(client.series()["stethoscope_counts_age_seconds"]) < 1
    os.kill(process.worker_pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        page = client.series()
        assert time.monotonic() - start < 1
        assert float(page["stethoscope_counts_age_seconds"]) > 0.4
        assert page["stethoscope_step_batches_scored_total"] == "1"
        while float(client.series()["stethoscope_counts_age_seconds"]) < 2:
            pass  # a scrape of a frozen worker takes half a second
        assert main(["status", "--address", process.address]) == 0
        assert "WORKER DOES NOT ANSWER" in capsys.readouterr().out
    finally:
        os.kill(process.worker_pid, signal.SIGCONT)
    client.good()
    assert float(client.series()["stethoscope_counts_age_seconds"]) < 1
    assert client.status().step_batches.scored == 2


def test_a_worker_that_is_killed_ends_the_sidecar_with_a_status_and_the_next_one_goes_on_counting(home, served):
    process, client = served
    client.good()
    os.kill(process.worker_pid, signal.SIGKILL)
    assert process.wait() == EX_SOFTWARE
    events = {json.loads(line)["event"] for line in process.lines}
    assert {"worker_lost", "stopped"} <= events
    with Process(home, home / "artifacts") as second, Client(second) as again:
        again.register()
        again.good()
        counts = again.status().step_batches
        assert (counts.received, counts.scored, counts.dropped, counts.in_flight) == (2, 2, 0, 0)


def test_a_control_process_that_is_killed_takes_its_worker_with_it(served):
    process, _ = served
    worker = process.worker_pid
    process.signal(signal.SIGKILL)
    process.wait()
    ends_s = time.monotonic() + 5
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < ends_s, "the worker outlives its control process"
        os.sched_yield()


def test_ctrl_c_in_a_terminal_reaches_both_and_still_drains(served):
    process, client = served
    client.good()
    os.kill(process.worker_pid, signal.SIGINT)
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    stopped = process.event("stopped")
    assert (stopped["received"], stopped["scored"], stopped["in_flight"], stopped["balanced"]) == (1, 1, 0, True)


def test_an_action_for_a_signal_that_nobody_has_is_told(home):
    flags = ("--set", "verdicts.signals={fisrt: block}")
    with Process(home, write_artifacts(home), *flags) as process, Client(process) as client:
        client.register()
        told = process.event("verdicts_of_unknown_signals")
        assert (told["level"], told["signals"]) == ("warning", "fisrt")


def test_two_sidecars_cannot_keep_one_ledger(home):
    data = ("--set", f"data.folder={home}/data")
    with Process(home, write_artifacts(home), *data) as first, Client(first) as client:
        client.register()
        client.good()
        other = f"unix:{home}/other/sidecar.sock"
        with Process(home, home / "artifacts", *data, address=other) as second:
            assert second.wait() == 78
            assert any("another sidecar keeps its ledger" in line for line in second.lines)
        client.good()
