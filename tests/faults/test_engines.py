"""Engines come, go and never come back: none keeps a place for good, and a plan may have nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.errors import DropReason, TooManyEnginesError
from sidecar.service import Sidecar
from sidecar.types import EngineId
from tests.builders import wire_batch, write_control
from tests.faults.survivor import standing
from tests.hot import Hot
from tests.service.client import Client


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hot(clock: ManualClock) -> Hot:
    return Hot(clock)


def full(hot: Hot) -> None:
    for i in range(Config().limits.engines):
        hot.register(f"engine-{i}")
    with pytest.raises(TooManyEnginesError):
        hot.register("one-more")


def test_engines_that_register_and_never_send_do_not_keep_their_places(hot, clock):
    full(hot)
    clock.advance(Config().coverage.forget_s + 1)
    hot.snapshot()
    hot.register("one-more")


def test_an_engine_that_is_connected_or_still_sends_keeps_its_place(hot, clock):
    full(hot)
    hot.pipeline.stream_opened(EngineId("engine-0"))
    clock.advance(Config().coverage.forget_s - 1)
    hot.submit(wire_batch(engine_id="engine-1", taken_ns=clock.unix_ns()))
    clock.advance(2)
    hot.snapshot()
    assert [hot.pipeline.coverage.knows(EngineId(f"engine-{i}")) for i in range(3)] == [True, True, False]


def test_one_engine_too_many_is_refused_and_counted_and_the_others_go_on(serve):
    with Client(serve(**{"limits.engines": 2})) as client:
        for engine in ("engine-0", "engine-1", "engine-0"):
            client.register(engine=engine)
        before = client.series()
        with pytest.raises(grpc.RpcError) as refused:
            client.register(engine="engine-2")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert client.moved(before) == {}
        after = {**standing(client.series()), "stethoscope_engines_refused_total": "0"}
        assert after == standing(before)
        assert client.series()["stethoscope_engines_refused_total"] == "1"
        client.good()


def test_a_batch_after_the_end_is_dropped_and_the_ledger_still_balances(hot, clock):
    hot.register()
    hot.pipeline.end_all()
    result = hot.submit(wire_batch(taken_ns=clock.unix_ns()))
    assert (result.scored, result.reason) == (False, DropReason.SHUTTING_DOWN)
    counts = hot.snapshot()
    assert counts.step_batches.dropped[DropReason.SHUTTING_DOWN] == 1
    assert counts.rows.dropped[DropReason.SHUTTING_DOWN] == 3
    assert counts.step_batches.balanced
    assert counts.rows.balanced


@pytest.fixture
def only_control(home: Path) -> Path:
    root = home / "control-only"
    write_control(root)
    return root


def test_a_plan_with_a_control_and_no_probe_scores_its_rows(serve: Callable[..., Sidecar], only_control: Path) -> None:
    with Client(serve(**{"artifacts.folder": str(only_control)})) as client:
        client.register()
        client.good(requests=[("a", (0, 1)), ("b", (0,))])
        client.good(requests=[("c", (0, 1, 2))], finished_request_ids=["a", "b"])
        coverage = client.status().coverage[0]
        assert (coverage.seen, coverage.reason) == (6, "")
        client.scrape()


def test_without_any_artifact_batches_are_dropped_for_want_of_a_plan(serve):
    with Client(serve(**{"artifacts.folder": None})) as client:
        client.register()
        before = client.series()
        result = client.observe(wire_batch()).result
        assert (result.outcome, result.reason) == (ingest_pb2.OUTCOME_DROPPED, "no_plan")
        assert client.moved(before) == {
            "step_batches_received": 1,
            "step_batches_dropped{no_plan}": 1,
            "rows_received": 3,
            "rows_dropped{no_plan}": 3,
        }
