"""Whatever else comes to the port: other protocols, and a message that is small only on the wire."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import psutil
import pytest

from tests.faults.process import Process
from tests.faults.survivor import standing
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts

pytestmark = pytest.mark.process
DEADLINE_S = 20.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Process, Client]]:
    """A sidecar on a TCP port of loopback, and a registered client of it."""
    with private_folder() as home:
        flags = ("--set", "coverage.report_s=1000000")
        with Process(home, write_artifacts(home), *flags, address="127.0.0.1:0") as process, Client(process) as client:
            client.register()
            client.good()
            yield process, client


def connect(process: Process) -> socket.socket:
    host, _, port = process.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def closed_after(process: Process, data: bytes) -> None:
    """Send, then read until the other side closes; a reset is a close too. Fails at the deadline."""
    with connect(process) as connection, suppress(ConnectionError):
        connection.sendall(data)
        while connection.recv(4096):
            pass


BYTES = {
    "HTTP/1.1 GET": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.1 POST": b"POST /stethoscope.v1.IngestService/Observe HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd",
    "TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "junk": os.urandom(65536),
    "zeros": bytes(65536),
    "preface, then junk": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(100),
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_another_protocol_is_closed_and_leaves_ledger_and_log_alone(served, data):
    process, client = served
    before, lines, pid = client.series(), len(process.lines), process.pid
    closed_after(process, data)
    assert client.moved(before) == {}
    assert standing(client.series()) == standing(before)
    client.good()
    assert process.running()
    assert process.pid == pid
    assert no_line_above_info(process.lines[lines:])


def test_a_tls_client_is_told_that_there_is_no_tls_and_leaves_no_trace(served):
    process, client = served
    before, lines = client.series(), len(process.lines)
    context = ssl.create_default_context()
    with connect(process) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(plain, server_hostname="localhost")
    assert client.moved(before) == {}
    client.good()
    assert no_line_above_info(process.lines[lines:])


def test_connections_that_say_nothing_do_not_keep_a_client_waiting(served):
    process, client = served
    silent = [connect(process) for _ in range(50)]
    try:
        client.good()
    finally:
        for connection in silent:
            connection.close()


def test_a_gzip_bomb_is_refused_and_costs_less_than_32_mib(served):
    """256 MiB of zeros are 255 KiB on the wire."""
    process, client = served
    before, lines = client.series(), len(process.lines)
    client.observe(b"\x00" * MIB, compression=grpc.Compression.Gzip)  # warm: what the first message costs once
    base = process.rss()
    with peak_rss(process) as peak:
        answer = client.observe(b"\x00" * (256 * MIB), compression=grpc.Compression.Gzip, timeout_s=60.0)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak[0] - base < 32 * MIB
    assert client.moved(before) == {"step_batches_received": 1, "step_batches_rejected{malformed}": 1}  # the warm one
    assert standing(client.series()) == standing(before)
    client.good()
    assert process.running()
    assert [json.loads(line)["event"] for line in process.lines[lines:]] == ["batch_rejected"]


@contextmanager
def peak_rss(process: Process) -> Iterator[list[int]]:
    """The largest resident size seen while the block runs, looked at a thousand times a second."""
    peak, done, watched = [0], threading.Event(), psutil.Process(process.pid)

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], watched.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def no_line_above_info(lines: list[str]) -> bool:
    return not [line for line in lines if json.loads(line)["level"] not in ("debug", "info")]
