"""Requests to which an adapter is applied: their states are those of other weights than the artifacts were made on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.registry import load_folder
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.config import Config, Verdicts
from sidecar.outcome import Result
from sidecar.reading.read import Readings
from sidecar.snapshot import EndedRequest
from sidecar.types import Action, EngineId, Evidence, RequestId
from tests.builders import WIDTH, wire_batch, wire_segments, write_control, write_probe
from tests.hot import Hot

UNVERIFIED, STALE = Evidence.UNVERIFIED, Evidence.STALE


@pytest.fixture
def ended() -> list[EndedRequest]:
    return []


@pytest.fixture
def hot(tmp_path: Path, ended: list[EndedRequest]) -> Hot:
    write_probe(tmp_path, "toxic")
    write_control(tmp_path)
    verdicts = Verdicts(default=Action.BLOCK, at_deadline=Action.BLOCK)
    made = Hot(SystemClock(), ended.append, load_folder(tmp_path, limit=9), Config(verdicts=verdicts))
    made.register()
    return made


def step(*positions: int, adapters: bool = True, **changes: object) -> ingest_pb2.StepBatch:
    """Two requests that read high on the signal's axis; to the second one an adapter is applied."""
    requests = [("plain", positions), ("adapted", positions)]
    rows = np.zeros((2 * len(positions), WIDTH), dtype=np.float32)
    rows[:, 0] = 9.0
    segments = wire_segments(requests, adapters=["", "sql"] if adapters else [])
    return wire_batch(rows, requests, segments=segments, **changes)


def acts(result: Result) -> dict[str, Action]:
    return {one.request_id: one.action for one in result.verdicts}


def test_only_a_request_of_the_models_own_weights_is_acted_upon(hot):
    assert acts(hot.submit(step(0, 1))) == {"plain": Action.BLOCK}
    (signal,) = hot.snapshot().signals
    assert (signal.detections, signal.readings) == (1, 4)


def test_a_caller_that_waits_is_told_that_nothing_was_judged(hot):
    result = hot.submit(step(0, 1, verdict_within_us=1_000_000))
    assert acts(result) == {"plain": Action.BLOCK, "adapted": Action.ALLOW}
    told = {one.request_id: (one.read, one.skipped, one.signals) for one in result.verdicts}
    assert told["plain"][:2] == (("toxic",), ())
    assert told["adapted"] == ((), ("toxic",), ())


def test_a_signal_that_was_late_could_not_have_stopped_it(hot):
    """What was late could have blocked the request of the model's own weights: there the policy is closed."""
    judge, plan, batch = hot.pipeline.judge, hot.pipeline.plan, step(0, verdict_within_us=1_000_000)
    nothing, unread = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.bool_)
    late = Readings(plan, 1, nothing, unread, np.ones(1, np.int64), (), 0, late=np.ones(1, np.bool_))
    told = {one.request_id: one for one in judge.judge(late, hot.decoder.step_batch(batch))}
    assert (told["plain"].action, told["plain"].late) == (Action.BLOCK, ("toxic",))
    assert (told["adapted"].action, told["adapted"].skipped) == (Action.ALLOW, ("toxic",))


def test_an_adapter_that_was_named_once_holds_for_the_whole_request(hot):
    hot.submit(step(0))
    assert acts(hot.submit(step(1, adapters=False))) == {"plain": Action.BLOCK}


def test_its_score_is_shown_at_its_end_with_stale_evidence_and_the_adapters_name(hot, ended):
    hot.submit(step(0, 1))
    hot.pipeline.judge.finish(EngineId("engine-0"), (RequestId("plain"), RequestId("adapted")))
    hot.snapshot()
    shown = {one.request_id: (one.adapter, one.scores[0].evidence, one.flagged) for one in ended}
    assert shown == {"plain": ("", UNVERIFIED, True), "adapted": ("sql", STALE, False)}
    assert {one.scores[0].score > 0.99 for one in ended} == {True}
