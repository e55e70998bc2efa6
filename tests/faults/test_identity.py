"""Who is who: the same batch counts once, and ids that begin alike are as different as any others."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import ManualClock
from sidecar.snapshot import EndedRequest
from tests.builders import WIDTH, axis, manifest_fields, wire_batch
from tests.faults.survivor import standing
from tests.hot import Hot

SCORED, DROPPED = ingest_pb2.OUTCOME_SCORED, ingest_pb2.OUTCOME_DROPPED


def hot_rows(count: int) -> np.ndarray:
    rows = np.zeros((count, WIDTH), dtype=np.float32)
    rows[:, 0] = 9.0
    return rows


def detections(client) -> int:
    return next(one.detections for one in client.status().signals if one.name == "first")


def test_the_same_batch_twice_is_answered_ok_and_counted_as_duplicate_and_flags_once(client):
    batch = wire_batch(hot_rows(3))
    first = client.observe(batch).result
    assert (first.outcome, len(first.verdicts)) == (SCORED, 1)
    before = client.series()
    second = client.observe(batch).result
    assert (second.outcome, second.reason, len(second.verdicts)) == (DROPPED, "duplicate", 0)
    assert client.moved(before) == {
        "step_batches_received": 1,
        "step_batches_dropped{duplicate}": 1,
        "rows_received": 3,
        "rows_dropped{duplicate}": 3,
    }
    assert standing(client.series()) == standing(before)
    assert detections(client) == 1
    client.good()


def test_the_same_batch_by_stream_and_by_observe_is_one_batch(client):
    stream, batch = client.stream(), wire_batch()
    stream.send_batch(batch)
    assert stream.next_result().outcome == SCORED
    assert client.observe(batch).result.reason == "duplicate"
    stream.send_batch(batch)
    assert stream.next_result().reason == "duplicate"
    stream.cancel()


def test_the_same_batch_from_many_threads_at_once_is_scored_once(client):
    batch, results = wire_batch(hot_rows(3)), Counter()
    together, lock = threading.Barrier(8), threading.Lock()

    def send() -> None:
        together.wait(10)
        made = client.observe(batch).result
        with lock:
            results[made.outcome, made.reason] += 1

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {(SCORED, ""): 1, (DROPPED, "duplicate"): 7}
    assert detections(client) == 1


def test_a_batch_that_was_refused_may_come_again_mended(client):
    batch = wire_batch()
    spoiled = ingest_pb2.StepBatch()
    spoiled.CopyFrom(batch)
    spoiled.tensors[0].columns += 1
    assert client.observe(spoiled).text == "size_mismatch"
    assert client.observe(batch).result.outcome == SCORED


def test_batch_ids_are_each_engines_own(client):
    client.register(engine="engine-1")
    for engine in ("engine-0", "engine-1"):
        assert client.observe(wire_batch(batch_id="1", engine_id=engine)).result.outcome == SCORED
    assert client.observe(wire_batch(batch_id="1", engine_id="engine-1")).result.reason == "duplicate"


def test_batch_ids_that_begin_alike_are_different_batches(client):
    for batch_id in ("a", "aa", "a-1", "a-10", "a-1.", "A"):
        assert client.observe(wire_batch(batch_id=batch_id)).result.outcome == SCORED


def test_the_memory_of_batch_ids_is_bounded_and_says_when_it_forgets(serve):
    from tests.service.client import Client

    with Client(serve(**{"limits.dedup_ids": 4})) as client:
        client.register()
        for i in range(5):
            client.good(batch_id=f"b{i}")
        assert client.series()["stethoscope_dedup_evicted_total"] == "1"
        assert client.observe(wire_batch(batch_id="b4")).result.reason == "duplicate"
        assert client.observe(wire_batch(batch_id="b0")).result.outcome == SCORED


def test_engines_whose_ids_begin_alike_are_different_engines(client):
    answer = client.observe(wire_batch(engine_id="engine-00"))
    assert (answer.text, answer.field) == ("unknown_engine", "step_batch.engine_id")
    answer = client.observe(wire_batch(engine_id="engine"))
    assert answer.text == "unknown_engine"


def test_the_end_of_a_request_does_not_end_one_whose_id_begins_alike(client):
    requests = [("req-1", (0,)), ("req-10", (0,)), ("req-", (0,))]
    client.good(requests=requests)
    client.good(requests=[("other", (0, 1, 2))], finished_request_ids=["req-1", "req"])
    assert client.series()["stethoscope_requests_tracked"] == "3"
    assert client.series()['stethoscope_probe_request_score_count{probe="first"}'] == "1"


def test_the_ends_of_requests_that_were_never_seen_are_not_remembered():
    """A client that confuses its ids must not make the sidecar grow."""
    clock = ManualClock()
    hot = Hot(clock)
    hot.register()
    pipeline, decoder = hot.pipeline, hot.decoder
    tracemalloc.start()
    try:
        for step in range(20):
            wire = ingest_pb2.RequestsFinished(engine_id="engine-0", request_ids=[f"{step}-{i}" for i in range(4096)])
            pipeline.finished(*decoder.finished(wire))
            pipeline.settle()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20


# Rows of many requests through many steps, against what each request was given.

IDS = ("r", "r1", "r10", "r1.", "R1", "r-1", "1r", "r11")
step = st.lists(
    st.tuples(st.sampled_from(IDS), st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4)),
    min_size=1,
    max_size=5,
    unique_by=lambda one: one[0],
)


@pytest.fixture(scope="module")
def artifacts_in_memory(tmp_path_factory):
    from probes.artifact import save_artifact
    from probes.registry import load_folder

    root = tmp_path_factory.mktemp("artifacts")
    for column, kind in enumerate(("mean", "last", "ema", "max_rolling_mean")):
        fields = manifest_fields(kind, aggregation={"kind": kind, "window": 3} if column > 1 else {"kind": kind})
        save_artifact(root / kind, fields, axis(column), np.zeros(1, np.float32))
    return load_folder(root, limit=10)


@settings(max_examples=60, deadline=None)
@given(st.lists(step, min_size=1, max_size=8))
def test_no_request_ever_gets_a_row_of_another(artifacts_in_memory, steps):
    """Each request's final score by any aggregation is that of its own rows alone, whoever shared its steps."""
    clock, ended = ManualClock(), list[EndedRequest]()
    hot = Hot(clock, ended.append, artifacts_in_memory)
    hot.register()
    given_rows: defaultdict[str, list[float]] = defaultdict(list)
    for one in steps:
        requests, values = [], []
        for name, readings in one:
            start = len(given_rows[name])
            requests.append((name, range(start, start + len(readings))))
            given_rows[name] += readings
            values += readings
        rows = np.repeat(np.array(values, dtype=np.float32)[:, None], WIDTH, axis=1)
        wire = wire_batch(rows, requests=requests, taken_ns=clock.unix_ns())
        assert hot.submit(wire).scored
    hot.pipeline.end_all()
    assert {one.request_id for one in ended} == set(given_rows)
    for one in ended:
        scores = {score.name: score.score for score in one.scores}
        wanted = expected(np.array(given_rows[one.request_id]))
        assert scores == pytest.approx(wanted, abs=1e-6)
        assert one.tokens_seen == len(given_rows[one.request_id])


def expected(readings: np.ndarray) -> dict[str, float]:
    """The four aggregations by their definitions, over all of a request's readings at once."""
    window, ema = 3, readings[0]
    for value in readings[1:]:
        ema += 2 / (window + 1) * (value - ema)
    rolling = readings.mean()
    if len(readings) >= window:
        rolling = max(readings[i : i + window].mean() for i in range(len(readings) - window + 1))
    raw = {"mean": readings.mean(), "last": readings[-1], "ema": ema, "max_rolling_mean": rolling}
    return {name: 1 / (1 + np.exp(-value)) for name, value in raw.items()}
