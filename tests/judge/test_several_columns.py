"""Probes with several columns, and thresholds by length, served by the whole path: a request's score is its batch definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.artifact import Artifact, save_artifact
from probes.manifest import Aggregation, AggregationKind
from probes.registry import load_folder
from probes.serving import Served
from sidecar.clock import SystemClock
from sidecar.reading.plan import build_plan
from sidecar.snapshot import EndedRequest
from sidecar.types import EngineId, RequestId, TapPoint
from sidecar.worker import planwire
from tests.builders import MODEL, WIDTH, manifest_fields, wire_batch, write_control, write_probe
from tests.hot import Hot

AGGREGATIONS = {
    kind.value: Aggregation(kind=kind, window=4, agree=3 if kind is AggregationKind.COHERENCE else 1, heads=heads)
    for kind in AggregationKind
    for heads in [3 if kind is AggregationKind.MULTIMAX else 1]
}
REQUESTS = {"a": 9, "b": 3, "c": 1}


def save(root: Path, name: str, aggregation: Aggregation, **changes) -> None:
    rng = np.random.default_rng(len(name))
    fields = manifest_fields(name, aggregation=aggregation.model_dump(mode="json"), **changes)
    directions = rng.normal(size=(WIDTH, aggregation.columns)).astype(np.float32)
    save_artifact(root / name, fields, directions, rng.normal(size=aggregation.columns).astype(np.float32))


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Artifact]:
    for name, aggregation in AGGREGATIONS.items():
        save(tmp_path, name, aggregation)
    write_probe(tmp_path, "elsewhere", tap=TapPoint(2))
    write_control(tmp_path)
    return {one.manifest.name: one for one in load_folder(tmp_path, limit=99)}


def served(artifact: Artifact) -> Served:
    assert artifact.manifest.aggregation is not None
    return Served(artifact.directions, artifact.offsets, artifact.manifest.aggregation)


def scored(hot: Hot, rows: dict[str, np.ndarray]) -> None:
    """Some rows of every request in one step, at the positions that come next."""
    requests = [(name, range(len(of))) for name, of in rows.items()]
    assert hot.submit(wire_batch(np.concatenate(list(rows.values())), requests)).scored


def test_a_requests_score_is_its_batch_definition_for_every_kind(artifacts):
    ended: list[EndedRequest] = []
    hot = Hot(SystemClock(), ended.append, artifacts.values())
    hot.register()
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(count, WIDTH)).astype(np.float32) for name, count in REQUESTS.items()}
    scored(hot, {name: of[: max(1, len(of) // 2)] for name, of in rows.items()})
    for step in range(8):  # the rest, one by one
        left = {name: of[max(1, len(of) // 2) + step :][:1] for name, of in rows.items()}
        if any(len(of) for of in left.values()):
            scored(hot, {name: of for name, of in left.items() if len(of)})
    assert hot.pipeline.judge is not None
    hot.pipeline.judge.finish(EngineId("engine-0"), tuple(map(RequestId, rows)))
    snapshot = hot.snapshot()
    assert len(ended) == len(rows)
    for request in ended:
        found = {one.name: one.score for one in request.scores}
        assert set(found) == set(AGGREGATIONS)
        for name in AGGREGATIONS:
            (score,) = served(artifacts[name]).scores([rows[request.request_id]])
            assert found[name] == pytest.approx(1 / (1 + np.exp(-score)), abs=1e-5), name
    readings = {one.name: one.readings for one in snapshot.signals}
    assert {readings[name] for name in AGGREGATIONS} == {sum(REQUESTS.values())}


def test_a_token_of_several_heads_reads_their_sum_and_one_of_attention_its_value(artifacts):
    hot = Hot(SystemClock(), artifacts=artifacts.values())
    hot.register()
    row = np.random.default_rng(5).normal(size=(1, WIDTH)).astype(np.float32)
    scored(hot, {"a": row})
    total = {one.name: one.scores.total for one in hot.snapshot().signals}
    heads = served(artifacts["multimax"]).read(row)[0]
    value, _ = served(artifacts["attention"]).read(row)[0]
    assert total["multimax"] == pytest.approx(1 / (1 + np.exp(-heads.sum())), abs=1e-5)
    assert total["attention"] == pytest.approx(1 / (1 + np.exp(-value)), abs=1e-5)


def test_a_plan_with_such_signals_arrives_at_the_worker_as_it_was(artifacts):
    plan = build_plan(1, artifacts.values(), MODEL)
    there = planwire.from_memory(planwire.to_memory(plan))
    assert there.signals == plan.signals
    assert there.firsts.tolist() == plan.firsts.tolist()
    assert [tap.places for tap in there.taps.values()] == [tap.places for tap in plan.taps.values()]
    owners = [tap.owners for tap in there.taps.values()]
    assert owners[0].tolist() == plan.taps[TapPoint(1)].owners.tolist()
    assert owners[1] is None


@pytest.mark.parametrize(("tokens", "fires"), [(3, True), (4, False), (7, False), (8, True)])
def test_a_long_request_fires_at_the_threshold_of_its_length(tmp_path, tokens, fires):
    """Score .88 always; the threshold is .5 below 4 tokens, .95 from there on, .7 from 8 on."""
    bucket = {"measured_fpr": 0.0, "fpr_interval": [0.0, 0.1], "benign_rows": 99, "certified": True}
    buckets = [{"min_tokens": 4, "probability": 0.95, **bucket}, {"min_tokens": 8, "probability": 0.7, **bucket}]
    threshold = {**manifest_fields("x")["threshold"], "probability": 0.5, "buckets": buckets}
    write_probe(tmp_path, "long", threshold=threshold)
    hot = Hot(SystemClock(), artifacts=load_folder(tmp_path, limit=9))
    hot.register()
    rows = np.zeros((tokens, WIDTH), dtype=np.float32)
    rows[:, 0] = 2.0
    result = hot.submit(wire_batch(rows, [("a", range(tokens))]))
    assert result.scored
    flagged = [signal for verdict in result.verdicts for signal in verdict.signals]
    assert bool(flagged) is fires
    if fires:
        assert flagged[0].threshold == (0.5 if tokens < 4 else 0.7)


def test_a_probe_of_several_layers_reads_their_sum_and_nothing_where_one_is_missing(tmp_path):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(WIDTH, 2)).astype(np.float32)
    fields = manifest_fields("both", tap=TapPoint(2), also=["blocks.1.resid_post"])
    save_artifact(tmp_path / "both", fields, directions, np.array([0.5, 0.0], np.float32))
    write_probe(tmp_path, "one", column=1)
    write_control(tmp_path)
    ended: list[EndedRequest] = []
    hot = Hot(SystemClock(), ended.append, load_folder(tmp_path, limit=9))
    hot.register()
    early, late = (rng.normal(size=(4, WIDTH)).astype(np.float32) for _ in range(2))
    batch = wire_batch(early, [("a", range(4))])
    batch.tensors.add().CopyFrom(batch.tensors[0])
    batch.tensors[1].tap_point.layer = 2
    batch.tensors[1].raw = late.tobytes()
    assert hot.submit(batch).scored
    alone = wire_batch(early, [("b", range(4))])
    assert hot.submit(alone).scored
    assert hot.pipeline.judge is not None
    hot.pipeline.judge.finish(EngineId("engine-0"), (RequestId("a"), RequestId("b")))
    hot.snapshot()
    scores = {(one.request_id, score.name): score.score for one in ended for score in one.scores}
    logit = (late @ directions[:, 0] + early @ directions[:, 1]).mean() + 0.5
    assert scores["a", "both"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert ("b", "both") not in scores
    assert ("b", "one") in scores
