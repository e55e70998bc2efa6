"""A flood of bad batches is a few lines a second, and they say how many they stand for."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import ManualClock
from sidecar.log import Level, Log
from tests.builders import wire_batch

FLOOD_S = 2.0
LINES_PER_S = 10


def events(lines: list[str], name: str) -> list[dict[str, Any]]:
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_a_refused_batch_is_one_line_with_its_reason_and_field(client, lines):
    client.observe(wire_batch(taken_ns=1))
    (told,) = events(lines, "batch_rejected")
    assert (told["level"], told["reason"], told["field"]) == ("warning", "bad_timestamp", "step_batch.taken_ns")
    assert told.keys() == {"ts", "level", "event", "reason", "field"}


def test_a_scored_or_dropped_batch_is_no_line(client, lines):
    client.good(batch_id="one")
    client.observe(wire_batch(batch_id="one"))
    assert {event["event"] for event in map(json.loads, lines)} == {"started", "kernels", "engine_registered"}


def test_a_flood_of_bad_batches_is_at_most_ten_lines_a_second_and_none_is_forgotten(client, lines):
    stream, sent = client.stream(), 0
    ends = time.monotonic() + FLOOD_S
    bad = ingest_pb2.StreamRequest(step_batch=wire_batch(taken_ns=1)).SerializeToString()
    while time.monotonic() < ends:
        for _ in range(50):
            stream.send(bad)
        for _ in range(50):
            assert stream.next_result().reason == "bad_timestamp"
        sent += 50
    told = events(lines, "batch_rejected")
    assert sent > 20 * LINES_PER_S * FLOOD_S
    # The window is a second of the monotonic clock; a wall-clock second may touch two of them.
    assert max(Counter(int(event["ts"]) for event in told).values()) <= 2 * LINES_PER_S
    assert len(told) <= LINES_PER_S * (FLOOD_S + 2)
    assert sum(event.get("suppressed", 0) for event in told) > 0
    suppressed = float(client.series()["stethoscope_log_lines_suppressed_total"])
    assert len(told) + suppressed == sent
    assert client.status().step_batches.rejected == sent
    client.good()
    stream.cancel()


@pytest.mark.parametrize("limit", [1, 10])
def test_the_limit_holds_for_each_second_and_each_event_on_its_own(limit):
    clock, lines = ManualClock(), list[str]()
    log = Log(clock, lines_per_s=limit, write=lines.append)
    for _ in range(5):
        for _ in range(1000):
            log.event(Level.WARNING, "flood")
            log.event(Level.WARNING, "other")
        clock.advance(1.0)
    counted = Counter((event["event"], int(event["ts"])) for event in map(json.loads, lines))
    assert set(counted.values()) == {limit}
    assert len(counted) == 10
    told = sum(event.get("suppressed", 0) for event in map(json.loads, lines))
    assert told == 2 * 4 * (1000 - limit)  # those of the last second have no line after them yet
    assert log.suppressed == 2 * 5 * (1000 - limit)


def test_the_limit_is_a_setting(serve, lines):
    from tests.service.client import Client

    with Client(serve(**{"log.lines_per_s": 2})) as client:
        client.register()
        started = time.monotonic()
        for _ in range(30):
            client.observe(b"\xff")
        seconds = time.monotonic() - started
    assert 2 <= len(events(lines, "batch_rejected")) <= 2 * (seconds + 2)
