"""One address, one sidecar: the second one says so and goes, and the first never notices."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.process import Process
from tests.service.client import Client

pytestmark = pytest.mark.process
ROOM_S = 2.0


def unix_address(home: Path) -> str:
    return f"unix:{home}/run/sidecar.sock"


def tcp_address(home: Path) -> str:
    return "127.0.0.1:0"


@pytest.mark.parametrize("address_of", [unix_address, tcp_address], ids=["unix", "tcp"])
def test_a_second_sidecar_on_the_address_goes_at_once_naming_it_and_the_first_keeps_the_traffic(
    home: Path, artifacts: Path, address_of: Callable[[Path], str]
) -> None:
    with Process(home, artifacts, address=address_of(home)) as first, Client(first) as client:
        first.event("started")
        start_s = time.monotonic() - first.started_s
        client.register()
        with Process(home, artifacts, address=first.address) as second:
            sent = 0
            while not second.gone(0.05) and time.monotonic() - second.started_s < start_s + ROOM_S:
                client.good()
                sent += 1
            assert second.gone(0.0)
            assert second.wait() == 78
        (told,) = second.lines
        assert first.address.removeprefix("unix:") in told
        for _ in range(20):
            with Client(first) as newcomer:
                newcomer.good()
        assert client.status().step_batches.scored == sent + 20


def test_a_sidecar_on_another_address_but_the_same_metrics_port_goes_naming_the_port(home, artifacts):
    with Process(home, artifacts) as first:
        port = str(first.metrics_port)
        flags = ("--metrics-port", port)
        with Process(home, artifacts, *flags, address=f"unix:{home}/other/sidecar.sock") as second:
            assert second.wait() == 78
            (told,) = second.lines
            assert port in told
        assert first.running()


def test_both_problems_at_once_are_told_as_the_address_first(home, artifacts):
    """With the defaults everything clashes; the address is what tells that a sidecar is already there."""
    with (
        Process(home, artifacts) as first,
        Process(home, artifacts, "--metrics-port", str(first.metrics_port)) as second,
    ):
        assert second.wait() == 78
        assert "another sidecar already serves" in second.lines[0]


def test_after_kill_9_a_new_sidecar_starts_on_the_address(home, artifacts):
    with Process(home, artifacts) as first, Client(first) as client:
        client.register()
        client.good()
        first.signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        with Process(home, artifacts) as second, Client(second) as again:
            again.register()
            again.good()
            status = again.status().step_batches
            assert (status.received, status.scored) == (1, 1)
