"""Snapshots and ended requests of a sidecar that has seen some of everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sidecar.errors import DropReason, RejectReason
from sidecar.export.http import HttpOutcome
from sidecar.judge.buckets import Edges
from sidecar.judge.tally import SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES, TallyBank
from sidecar.ledger import Account, LedgerCounts
from sidecar.snapshot import (
    ArtifactSnapshot,
    CanarySnapshot,
    CircuitAlarmSnapshot,
    CircuitSliceSnapshot,
    CircuitSnapshot,
    CircuitsSnapshot,
    CircuitState,
    CoverageSnapshot,
    EndedRequest,
    Exemplar,
    Histogram,
    KeeperSnapshot,
    KernelChoice,
    ProcessSnapshot,
    ReloadOutcome,
    Rung,
    RunSnapshot,
    ShardOutcome,
    ShardSnapshot,
    ShardState,
    SignalScore,
    SignalSnapshot,
    Snapshot,
    Stage,
    Transport,
)
from sidecar.types import Action, Evidence, ModelIdentity, TapLedgerCounts, TapPoint, TraceParent, UnseenReason

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
SAMPLED = TraceParent(TRACE_ID, SPAN_ID, sampled=True)
UNSAMPLED = TraceParent(TRACE_ID, SPAN_ID, sampled=False)


def histogram(edges: Edges, observations: list[float], exemplar: float | None = None) -> Histogram:
    bank = TallyBank(edges, 1)
    bank.add(np.zeros(len(observations), np.intp), np.array(observations))
    if exemplar is not None:
        bank.show(0, Exemplar(exemplar, TRACE_ID, SPAN_ID, 1_700_000_000.25))
    return bank.snapshot(0)


def signal(name: str = "sentiment", **changes: Any) -> SignalSnapshot:
    made = SignalSnapshot(
        name=name,
        version="1.0.0",
        digest="ab" * 32,
        tap_point=TapPoint(14),
        aggregation="mean",
        evidence=Evidence.DECODABLE,
        stale_reason="",
        threshold=0.81,
        target_fpr=0.05,
        certified=True,
        readings=4,
        scores=histogram(SCORE_EDGES, [0.1, 0.3, 0.55, 0.93], exemplar=0.93),
        requests=2,
        request_scores=histogram(SCORE_EDGES, [0.2, 0.9], exemplar=0.9),
        detections=1,
        detection_exemplar=Exemplar(0.9, TRACE_ID, SPAN_ID, 1_700_000_000.5),
        detections_estimated=2.5,
    )
    return replace(made, **changes)


def coverage(layer: int = 14, *, blind: bool = False) -> CoverageSnapshot:
    return CoverageSnapshot(TapPoint(layer), 100, 99, blind, "positive control" if blind else "", 99, 97)


def ledger() -> LedgerCounts:
    account = Account()
    account.receive(10)
    account.score(6)
    account.drop(DropReason.DUPLICATE, 1)
    account.reject(RejectReason.NON_FINITE, 2)
    return account.counts()


def run(**changes: Any) -> RunSnapshot:
    made = RunSnapshot(
        rung=Rung.TOKEN_STRIDE,
        rung_changes={Rung.NO_SKETCHES: 2, Rung.TOKEN_STRIDE: 1},
        request_fraction=0.4,
        verdicts={Action.ALLOW: 8, Action.BLOCK: 1},
        verdicts_late=3,
        queue_age=histogram(SECONDS_EDGES, [0.0003, 0.02]),
        kernels=(
            KernelChoice(TapPoint(14), 1, "numpy", 1e-5),
            KernelChoice(TapPoint(14), 64, "torch", 2e-5),
            KernelChoice(TapPoint(20), 1, "numpy", 1e-5),
        ),
        streams=(("engine-a", Transport.RING), ("engine-b", Transport.RING), ("engine-c", Transport.GRPC)),
        shards=ShardSnapshot(
            {ShardState.SERVING: 2, ShardState.LOST: 1}, {ShardOutcome.SHARD: 900, ShardOutcome.WORKER: 12}
        ),
        projections_checked=640,
        projections_wrong=1,
        age_s=0.25,
    )
    return replace(made, **changes)


def circuits() -> CircuitsSnapshot:
    """One validated circuit in two slices, one of which has an alarm; canaries that say where the model changed."""
    shares = Histogram((0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), np.array([5, 0, 1, 0, 0, 0, 0, 0, 2]), 2.25)
    slices = (
        CircuitSliceSnapshot("chat", 900, 45, 3, 2, 12, 4, shares, 2.5, 11.4, 60.0),
        CircuitSliceSnapshot("other", 100, 1, 0, 0, 4, 1, shares),
    )
    one = CircuitSnapshot(
        "induction",
        "1.0.0",
        "ab" * 32,
        "cd" * 32,
        "ef" * 32,
        Evidence.USED,
        "page",
        CircuitState.VALIDATED,
        "",
        True,
        (("blocks.5.attn_heads.3", 40), ("blocks.5.resid_post.spe", 1)),
        histogram(SCORE_EDGES, [0.1, 0.6]),
        slices,
        {"t2": 2, "spe": 1},
    )
    canaries = CanarySnapshot(
        True,
        True,
        {"whole": 9, "failed": 1},
        12.5,
        {"induction": 7.5},
        {"blocks.5.attn_heads": 6.0},
        ("induction",),
        ("blocks.5.attn_heads",),
        "blocks.5.attn_heads",
        300.0,
        {"no_round": 4, "repeated": 2},
    )
    kept = KeeperSnapshot(
        (CircuitAlarmSnapshot("induction", "chat", "page", "traffic", "less", "1-induction-00000000.json"),),
        {("induction", "chat", "traffic"): 1},
        {"written": 20},
        {"written": 1},
        canaries=canaries,
    )
    return CircuitsSnapshot((one,), 60.0, {"closed": 30}, {"evicted": 1}, {"unnamed": 7}, 12, 64, 4096, 0.5, kept)


def snapshot(**changes: Any) -> Snapshot:
    made = Snapshot(
        uptime_s=12.5,
        step_batches=ledger(),
        rows=ledger(),
        plan_generation=3,
        model=ModelIdentity("SmolLM2-135M-Instruct", "LlamaForCausalLM", 30, 576),
        signals=(signal("sentiment"), signal("spam", tap_point=TapPoint(20), certified=False)),
        coverage=(coverage(14), coverage(20)),
        blind=False,
        unseen={UnseenReason.SAMPLING: 7},
        artifacts=(ArtifactSnapshot("sentiment", "1.0.0", "decodable", ""), ArtifactSnapshot("x", "", "refused", "")),
        reloads={ReloadOutcome.OK: 2},
        stages={stage: histogram(SECONDS_EDGES, [0.0005]) for stage in Stage},
        budget_s=0.006,
        budget_use=histogram(SHARE_EDGES, [0.2]),
        engines=1,
        engines_refused=0,
        taps=TapLedgerCounts(10, 7, 2, 1, 4),
        requests_tracked=5,
        requests_evicted=0,
        dedup_evicted=0,
        traceparents_ignored=1,
        spans_queue_dropped=0,
        log_lines_suppressed=2,
        spans_exported=3,
        processes=(
            ProcessSnapshot("control", 12.5, 1e8, 40.0),
            ProcessSnapshot("worker", 99.25, 2e8, 12.0),
        ),
        http_requests={HttpOutcome.ANSWERED: 4},
        run=run(),
        circuits=circuits(),
    )
    return replace(made, **changes)


def score(name: str = "sentiment", value: float = 0.3, threshold: float = 0.8, *, readings: int = 9) -> SignalScore:
    return SignalScore(name, "1.0.0", Evidence.DECODABLE, value, threshold, value > threshold, readings)


def ended(request_id: str = "request-1", **changes: Any) -> EndedRequest:
    made = EndedRequest(
        request_id=request_id,
        engine_id="engine-1",
        traceparent=SAMPLED,
        started_ns=1_700_000_000_000_000_000,
        ended_ns=1_700_000_001_500_000_000,
        tokens_seen=40,
        tokens_unseen=8,
        scores=(score(),),
        ended_by="finished",
    )
    return replace(made, **changes)
