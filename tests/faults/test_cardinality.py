"""However many requests, tenants and traces there are: as many series as before, and as much memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.builders import WIDTH, wire_batch
from tests.faults.process import Process
from tests.service.client import Client

pytestmark = pytest.mark.process
DISTINCT = 100_000
EACH = 1000  # requests a step
TRACKED = 2000
MIB = 1 << 20
FLAGS = ("--set", f"limits.requests={TRACKED}", "--set", "limits.dedup_ids=50")


def crowd(number: int) -> ingest_pb2.StepBatch:
    """A step of a thousand requests that were never seen before, each with a tenant, route and trace of its own."""
    ids = range(number * EACH, (number + 1) * EACH)
    batch = wire_batch(np.zeros((EACH, WIDTH), dtype=np.float32), requests=[(f"request-{i}", (0,)) for i in ids])
    batch.segments.tenants.extend(f"tenant-{i}" for i in ids)
    batch.segments.routes.extend(f"route-{i}" for i in ids)
    batch.segments.adapters.extend(f"adapter-{i}" for i in ids)
    batch.segments.languages.extend(f"x-{i}" for i in ids)
    batch.segments.session_id_hashes.extend(f"{i:064x}" for i in ids)
    batch.segments.traceparents.extend(f"00-{i + 1:032x}-{i + 1:016x}-01" for i in ids)
    return batch


@pytest.fixture
def served(home, artifacts) -> Iterator[tuple[Process, Client]]:
    with Process(home, artifacts, *FLAGS) as process, Client(process) as client:
        client.register()
        yield process, client


def test_a_hundred_thousand_requests_and_tenants_leave_the_series_and_the_memory_as_they_were(served):
    process, client = served
    steps = DISTINCT // EACH
    for number in range(steps // 5):  # past every bound once: tables are full, pools are warm
        assert client.observe(crowd(number)).result.outcome == ingest_pb2.OUTCOME_SCORED
    series, rss = client.series().keys(), process.rss()
    for number in range(steps // 5, steps):
        assert client.observe(crowd(number)).result.outcome == ingest_pb2.OUTCOME_SCORED
    after = client.series()
    assert after.keys() == series
    assert float(after["stethoscope_step_batches_scored_total"]) == steps
    assert float(after["stethoscope_requests_tracked"]) == TRACKED
    assert float(after["stethoscope_requests_evicted_total"]) == DISTINCT - TRACKED
    assert float(after["stethoscope_dedup_evicted_total"]) == steps - 50
    assert process.rss() - rss < 16 * MIB
    page = client.scrape() + client.scrape(accept="application/openmetrics-text")
    assert not [word for word in ("tenant-", "request-", "route-", "adapter-", "x-9") if word in page]


def test_thousands_of_refusals_of_different_texts_make_no_series(served):
    """Each would have been a label value of its own."""
    _, client = served
    client.good()
    series = client.series().keys()
    stream = client.stream()
    count = 1000
    for number in range(count):
        stream.send_batch(wire_batch(batch_id=f"bad id {number}"))
        stream.send_batch(wire_batch(engine_id=f"nobody-{number}"))
    for _ in range(2 * count):
        assert stream.next_result().outcome == ingest_pb2.OUTCOME_REJECTED
    stream.cancel()
    assert client.series().keys() == series
