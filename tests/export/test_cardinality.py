"""However much traffic of however many kinds: the same series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from probes.registry import load_folder
from sidecar import published
from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.export.metric import PREFIX
from sidecar.export.metrics import MetricsCollector
from sidecar.outcome import Arrival
from sidecar.pipeline import Pipeline
from sidecar.reading.plan import build_plan
from sidecar.snapshot import Snapshot
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    Phase,
    RequestId,
    Segments,
    StepBatch,
    TapLedgerCounts,
    TapTensor,
    TrafficReport,
)
from tests.builders import MODEL, TAP, WIDTH, write_control, write_probe
from tests.export.test_metrics import OPENMETRICS, samples


def _crowd(first: int, size: int) -> StepBatch:
    """One batch of ``size`` requests never seen before, each with a tenant, a route and a trace of its own."""
    numbers = range(first, first + size)
    segments = Segments(
        request_ids=tuple(RequestId(f"request-{n}") for n in numbers),
        starts=np.arange(size),
        rows=np.ones(size, np.intp),
        positions=np.zeros(size, np.uint32),
        phases=np.full(size, Phase.PREFILL, np.int8),
        prompt_tokens=np.zeros(size, np.intp),
        traceparents=tuple(f"00-{n + 1:032x}-{n + 1:016x}-01" for n in numbers),
        session_id_hashes=tuple(f"session-{n}" for n in numbers),
        tenants=tuple(f"tenant-{n}" for n in numbers),
        routes=tuple(f"route-{n}" for n in numbers),
        adapters=tuple(f"adapter-{n}" for n in numbers),
        languages=tuple(f"x-{n}" for n in numbers),
    )
    rows = np.random.default_rng(first).normal(size=(size, WIDTH)).astype("<f4")
    tensors = (TapTensor(TAP, ElementType.F32, rows),)
    return StepBatch(
        BatchId(f"batch-{first}"), EngineId("engine-0"), 0, 0, first, segments, tensors, segments.request_ids
    )


def test_a_hundred_thousand_requests_and_tenants_change_no_series(tmp_path: Path) -> None:
    write_probe(tmp_path, "first")
    write_control(tmp_path)
    pipeline = Pipeline(Config(), ManualClock(), lambda _: None)
    pipeline.bind(build_plan(1, load_folder(tmp_path, limit=8), MODEL))
    pipeline.introduce(TrafficReport(EngineId("engine-0"), 0, 0, (), 0, TapLedgerCounts()))

    def told() -> Snapshot:
        made = published.snapshot(published.facts(pipeline), published.arrays(pipeline), pipeline.plan, ())
        ledger = pipeline.books.ledger  # whose counts lie in a file that the scrape reads by itself
        return replace(made, step_batches=ledger.step_batches.counts(), rows=ledger.rows.counts())

    collector = MetricsCollector(told, version="0.1.0")
    _submit(pipeline, 1)
    before = samples(collector.render()[0].decode())
    for first in range(1, 100_001, 1000):
        _submit(pipeline, 1000, first)
    after = samples(collector.render()[0].decode())
    assert after.keys() == before.keys()
    assert after[f"{PREFIX}rows_scored_total"] == 100_001
    assert len(collector.render(OPENMETRICS)[0]) < 64 * 1024


def _submit(pipeline: Pipeline, size: int, first: int = 0) -> None:
    pipeline.arrive()
    assert pipeline.submit(_crowd(first, size), Arrival(0.0, 0.0)).scored
    pipeline.settle()
