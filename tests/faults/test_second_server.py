"""One address, one sidecar: the second one says so and goes, and the first never notices."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts

pytestmark = pytest.mark.process
ROOM_S = 2.0
EX_CONFIG = 78


@dataclass(frozen=True)
class First:
    """The sidecar that was there first, a registered client of it, and how long it took to start."""

    process: Process
    client: Client
    start_s: float
    home: Path
    artifacts: Path


@pytest.fixture(scope="module", params=["unix", "tcp"])
def first(request: pytest.FixtureRequest) -> Iterator[First]:
    with private_folder() as home:
        artifacts, address = write_artifacts(home), "" if request.param == "unix" else "127.0.0.1:0"
        with Process(home, artifacts, address=address) as process, Client(process) as client:
            process.event("started")
            start_s = time.monotonic() - process.started_s
            client.register()
            yield First(process, client, start_s, home, artifacts)


def test_a_second_sidecar_on_the_address_goes_at_once_naming_it_and_the_first_keeps_the_traffic(first):
    """Both clash in the port of /metrics too, as with the defaults: the address is what tells that one is there."""
    before, sent = first.client.status().step_batches.scored, 0
    port = str(first.process.metrics_port)
    flags = ("--metrics-port", port)
    with Process(first.home, first.artifacts, *flags, address=first.process.address) as second:
        while not second.gone(0.05) and time.monotonic() - second.started_s < first.start_s + ROOM_S:
            first.client.good()
            sent += 1
        assert second.gone(0.0)
        assert second.wait() == EX_CONFIG
    (told,) = second.lines
    assert first.process.address.removeprefix("unix:") in told
    assert port not in told
    for _ in range(20):
        with Client(first.process) as newcomer:
            newcomer.good()
    assert first.client.status().step_batches.scored - before == sent + 20


def test_a_sidecar_on_another_address_but_the_same_metrics_port_goes_naming_the_port(first):
    flags = ("--metrics-port", str(first.process.metrics_port))
    with Process(first.home, first.artifacts, *flags, address=f"unix:{first.home}/other/sidecar.sock") as second:
        assert second.wait() == EX_CONFIG
    (told,) = second.lines
    assert flags[1] in told
    first.client.good()


def test_after_kill_9_a_new_sidecar_starts_on_the_address(home, artifacts):
    with Process(home, artifacts) as killed, Client(killed) as client:
        client.register()
        client.good()
        killed.signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        with Process(home, artifacts) as second, Client(second) as again:
            again.register()
            again.good()
            status = again.status().step_batches
            assert (status.received, status.scored) == (2, 2)  # the ledger is that of the socket, not of the process
