"""A client that sends and never reads: it is taken no further than it reads, and nobody else notices."""

from __future__ import annotations

import threading
import time
from statistics import median

import numpy as np

from protos.stethoscope.v1 import ingest_pb2
from sidecar.address import STREAM
from tests.builders import wire_batch
from tests.faults.full.driven import pause
from tests.faults.full.processes import Holdings
from tests.faults.full.watch import scrape
from tests.faults.process import Process
from tests.service.client import Client

GROWTH_BYTES = 48 << 20
REQUESTS = 64
MOST = 30_000  # batches that the mute client has to send: more than every buffer between can hold


def _told_much(number: int) -> bytes:
    """A batch whose answer names every one of its requests, and every signal that read it."""
    requests = [(f"request-{number}-{i}" + "x" * 150, (0,)) for i in range(REQUESTS)]
    rows = np.zeros((REQUESTS, 16), dtype=np.float32)
    batch = wire_batch(rows, requests=requests, engine_id="mute", verdict_within_us=60_000_000)
    return ingest_pb2.StreamRequest(step_batch=batch).SerializeToString()


def _mute(client: Client, ended: threading.Event):
    """A stream whose answers are never asked for. gRPC takes a message whenever it has room for one."""
    sent = [0]

    def messages():
        while sent[0] < MOST and not ended.is_set():
            yield _told_much(sent[0])
            sent[0] += 1
        ended.wait(60.0)

    return client.channel.stream_stream(STREAM, None, None)(messages(), timeout=120.0), sent


def test_who_does_not_read_is_not_taken_further_and_others_are_served(home, artifacts, record):
    with Process(home, artifacts) as process, Client(process) as mute, Client(process) as other:
        mute.register(engine="mute")
        other.register(engine="engine-0")
        before = median(_latency_s(other) for _ in range(50))
        held = Holdings.of(process.pid)
        ended = threading.Event()
        call, sent = _mute(mute, ended)
        try:
            stuck_at = _until_stuck(process, other)
            beside = _beside(other, 1.0)
            again = stuck_at + len(beside)
            taken = scrape(process)["step_batches"].received
            grown = Holdings.of(process.pid).rss_bytes - held.rss_bytes
            assert sent[0] < MOST
        finally:
            ended.set()
            call.cancel()
        other.good(engine_id="engine-0")
    assert taken <= again + 2, "it took more of a client that reads nothing"
    assert grown < GROWTH_BYTES
    record(
        "slow reader",
        "a client that never reads its answers",
        "taken no further; others are served",
        taken=stuck_at,
        grown_mib=grown / 2**20,
        latency_ratio=median(beside) / before,
    )


def _latency_s(client: Client) -> float:
    begun_s = time.perf_counter()
    client.good(engine_id="engine-0")
    return time.perf_counter() - begun_s


def _until_stuck(process: Process, other: Client, timeout_s: float = 40.0) -> int:
    """Until the sidecar takes nothing for half a second but what the other client sends. How much it has taken by then."""
    ends_s = time.monotonic() + timeout_s
    while time.monotonic() < ends_s:
        first = scrape(process)["step_batches"].received
        pause(0.5)
        other.good(engine_id="engine-0")
        last = scrape(process)["step_batches"].received
        if last - first <= 1 and last > 100:
            return last
    raise AssertionError(f"still taking: {last}")


def _beside(other: Client, seconds: float) -> list[float]:
    """The times of the other client's batches meanwhile. Every one of them is scored."""
    ends_s, latencies = time.monotonic() + seconds, list[float]()
    while time.monotonic() < ends_s:
        latencies.append(_latency_s(other))
    return latencies
