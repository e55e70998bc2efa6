"""Abuse of HTTP/2 itself costs those who commit it, and no other client."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.faults.http2 import CANCEL, CONTINUATION, END_HEADERS, HEADERS, RST_STREAM, Connection, call, frame, literal
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]
MIB = 1 << 20
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def served() -> Iterator[Process]:
    """A sidecar on a TCP port of loopback that knows engine-0."""
    with private_folder() as home:
        flags = ("--set", "coverage.report_s=1000000")
        with Process(home, write_artifacts(home), *flags, address="127.0.0.1:0") as process, Client(process) as client:
            client.register()
            client.good()
            yield process


@contextmanager
def busy_cores() -> Iterator[None]:
    """As many processes as there are cores want all of them: a reader that is late finds more to read at once."""
    spins = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in spins:
            one.kill()
            one.wait(DEADLINE_S)


@contextmanager
def another_client(process: Process, every_s: float = 0.01) -> Iterator[list[str]]:
    """Sends a batch every 10 ms while the block runs; what did not go well. Fails if it got fewer than 20 through."""
    over, failures, scored = threading.Event(), [], []

    def work() -> None:
        with Client(process) as client:
            while not over.wait(every_s) or len(scored) + len(failures) < 20:
                try:
                    scored.append(client.good())
                except BaseException as failure:
                    failures.append(repr(failure))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield failures
    finally:
        over.set()
        worker.join(DEADLINE_S)
    assert not worker.is_alive()
    assert len(scored) >= 20


def opened_and_reset(first: int, streams: int) -> bytes:
    """So many calls, each given up as soon as it is made. Stream ids of a client are odd."""
    block, cancel = call("/stethoscope.v1.IngestService/Stream"), CANCEL.to_bytes(4, "big")
    ids = range(2 * first + 1, 2 * (first + streams) + 1, 2)
    return b"".join(frame(HEADERS, one, block, END_HEADERS) + frame(RST_STREAM, one, cancel) for one in ids)


def test_rapid_reset_of_40000_streams_fails_no_call_of_another_client(served):
    pace, sent, connections = threading.Event(), 0, []
    with another_client(served) as failures:
        while sent < 40_000:
            connection = Connection(served.address)
            connections.append(connection)
            made = 0
            while sent < 40_000 and connection.send(opened_and_reset(made, 500)):
                made += 500
                sent += 500
                pace.wait(0.05)  # 10,000 a second
            connection.close()
            assert len(connections) < 1000
    assert failures == []
    assert served.running()


def test_a_flood_of_continuations_costs_no_call_of_another_client_and_memory_that_does_not_grow_with_it(served):
    """A header that never ends: each frame is within the limits, and all together are 900 MiB. No core is free meanwhile."""
    more = b"".join(literal(f"x-{number}", "v" * 100) for number in range(140))
    assert 15_000 < len(more) <= 16_384
    lines, continuation, process = len(served.lines), frame(CONTINUATION, 1, more), psutil.Process(served.pid)
    held = []
    with busy_cores(), another_client(served) as failures:
        connection = Connection(served.address)
        connection.send(frame(HEADERS, 1, call("/stethoscope.v1.IngestService/Observe")))
        for _ in range(16):
            assert all(connection.send(continuation) for _ in range(4096))
            held.append(process.memory_info().rss)
        connection.close()
    assert failures == []
    assert max(held) - held[0] < 16 * MIB
    assert served.running()
    assert served.lines[lines:] == []


@pytest.mark.parametrize("hello", [True, False], ids=["after the preface", "without a word"])
def test_300_idle_connections_keep_nobody_waiting(served, hello):
    idle = [Connection(served.address, hello=hello) for _ in range(300)]
    try:
        with another_client(served) as failures:
            for _ in range(5):  # and new ones are let in
                with Client(served) as client:
                    client.good()
        assert failures == []
        assert sum(not connection.closed.is_set() for connection in idle) >= 1
    finally:
        for connection in idle:
            connection.close()
