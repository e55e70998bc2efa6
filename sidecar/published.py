"""The counts of a pipeline as JSON facts and plain arrays, and, in another process, the Snapshot made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.circuits.circuit import SLICES
from sidecar.circuits.tick import SINGLE
from sidecar.config import Config
from sidecar.judge.buckets import Edges, TallyArrays
from sidecar.judge.tally import SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES
from sidecar.ledger import NOTHING
from sidecar.live.counts import EVIDENCE
from sidecar.live.published import MOST_NODES, circuits_snapshot
from sidecar.pipeline import Pipeline
from sidecar.reading.plan import Plan
from sidecar.snapshot import (
    ArtifactSnapshot,
    CoverageSnapshot,
    Exemplar,
    Histogram,
    KernelChoice,
    Rung,
    RunSnapshot,
    ShardSnapshot,
    SignalSnapshot,
    Snapshot,
    Stage,
)
from sidecar.types import TapLedgerCounts, TapPoint, UnseenReason

Array = npt.NDArray[Any]


def array_bytes(config: Config) -> int:
    """Room for the arrays of the largest plan that the configuration allows."""
    bank = 8 * (SCORE_EDGES.width + 1) + 64 * (len(SCORE_EDGES.classic) + 1)
    circuit = bank + 8 * SLICES * (len(SINGLE) + EVIDENCE) + 8 * MOST_NODES
    return (config.artifacts.max_artifacts + 64) * (2 * bank + circuit + 128)


def facts(pipeline: Pipeline) -> dict[str, Any]:
    """What is few and of many kinds. Everything that JSON has."""
    coverage, blind = pipeline.coverage.snapshot()
    judge = pipeline.judge
    return {
        "plan_generation": 0 if pipeline.plan is None else pipeline.plan.generation,
        "coverage": [{**asdict(one), "tap_point": one.tap_point.name} for one in coverage],
        "blind": blind,
        "unseen": dict(pipeline.coverage.unseen),
        "engines": pipeline.coverage.connected,
        "engines_refused": pipeline.engines_refused,
        "taps": astuple(pipeline.coverage.taps),
        "requests_tracked": 0 if judge is None else len(judge.requests),
        "requests_evicted": 0 if judge is None else judge.evicted,
        "dedup_evicted": pipeline.dedup_evicted,
        "traceparents_ignored": 0 if judge is None else judge.requests.traceparents_ignored,
        "run": {
            "rung": pipeline.ladder.rung,
            "rung_reason": pipeline.ladder.reason,
            "rung_for_s": pipeline.ladder.since_s,
            "rung_changes": dict(pipeline.ladder.changes),
            "verdicts": dict(pipeline.books.verdicts),
            "verdicts_late": pipeline.books.verdicts_late,
            "kernels": [{**asdict(one), "tap_point": one.tap_point.name} for one in pipeline.kernels.choices()],
            "shards": asdict(pipeline.others.counts()),
            "projections_checked": pipeline.books.projections_checked,
            "projections_wrong": pipeline.books.projections_wrong,
        },
        "circuits": None if pipeline.monitor is None else pipeline.monitor.facts(),
        "ticks": asdict(pipeline.ticks.counts),
    }


def arrays(pipeline: Pipeline) -> list[Array]:
    """What is much of one kind, in the order in which ``snapshot`` reads it. Live: copy before the next batch."""
    judge = pipeline.judge
    timings = pipeline.timings
    tallies = [*timings.stages.values(), timings.budget_use, timings.queue_age]
    made: list[Array] = [array for tally in tallies for array in tally.arrays()]
    if judge is not None:
        for bank in (judge.token_scores, judge.request_scores):
            made.extend(bank.arrays())
        made.extend((judge.detections, judge.detections_estimated, judge.detection_exemplars))
    if pipeline.monitor is not None:
        made.extend(pipeline.monitor.counts.arrays())
    return made


def snapshot(
    told: Mapping[str, Any], given: Sequence[Array], plan: Plan | None, waiting: tuple[ArtifactSnapshot, ...]
) -> Snapshot:
    """The snapshot of what was published under ``plan``; what others than the pipeline count is left at zero.

    waiting: artifacts before any engine has registered.
    """
    left = iter(given)
    stages = {stage.value: _histogram(SECONDS_EDGES, left) for stage in Stage}
    budget_use, queue_age = _histogram(SHARE_EDGES, left), _histogram(SECONDS_EDGES, left)
    signals = () if plan is None else tuple(_signals(plan, left))
    return Snapshot(
        uptime_s=0.0,
        step_batches=NOTHING,
        rows=NOTHING,
        plan_generation=told["plan_generation"],
        model=None if plan is None else plan.model,
        signals=signals,
        coverage=tuple(_coverage(one) for one in told["coverage"]),
        blind=told["blind"],
        unseen={UnseenReason(name): count for name, count in told["unseen"].items()},
        artifacts=waiting if plan is None else plan.artifacts,
        stages=stages,
        budget_s=0.0,
        budget_use=budget_use,
        engines=told["engines"],
        engines_refused=told["engines_refused"],
        taps=TapLedgerCounts(*told["taps"]),
        requests_tracked=told["requests_tracked"],
        requests_evicted=told["requests_evicted"],
        dedup_evicted=told["dedup_evicted"],
        traceparents_ignored=told["traceparents_ignored"],
        run=_run(told["run"], queue_age),
        circuits=circuits_snapshot(told["circuits"], told["ticks"], left, plan),
    )


def _histogram(edges: Edges, left: Iterator[Array]) -> Histogram:
    return next(iter(edges.histograms(TallyArrays(next(left), next(left), next(left)))))


def _run(told: Mapping[str, Any], queue_age: Histogram) -> RunSnapshot:
    kernels = tuple(KernelChoice(TapPoint.parse(one.pop("tap_point")), **one) for one in map(dict, told["kernels"]))
    shards = ShardSnapshot(**told["shards"])
    return RunSnapshot(
        **{**told, "rung": Rung(told["rung"]), "kernels": kernels, "shards": shards, "queue_age": queue_age}
    )


def _coverage(told: Mapping[str, Any]) -> CoverageSnapshot:
    return CoverageSnapshot(**{**told, "tap_point": TapPoint.parse(told["tap_point"])})


def _signals(plan: Plan, left: Iterator[Array]) -> Iterator[SignalSnapshot]:
    tokens, requests = (list(SCORE_EDGES.histograms(TallyArrays(next(left), next(left), next(left)))) for _ in range(2))
    detections, estimated, shown = next(left), next(left), next(left)
    for i, signal in enumerate(plan.signals):
        yield SignalSnapshot(
            signal.name,
            signal.version,
            signal.digest,
            signal.tap_point,
            signal.aggregation.value,
            signal.evidence,
            signal.stale_reason,
            signal.threshold,
            signal.target_fpr,
            signal.certified,
            int(tokens[i].counts.sum()),
            tokens[i],
            int(requests[i].counts.sum()),
            requests[i],
            int(detections[i]),
            _exemplar(shown[i]),
            float(estimated[i]),
        )


def _exemplar(one: np.void) -> Exemplar | None:
    value, trace_id, span_id, at_s = (one[name] for name in ("value", "trace_id", "span_id", "at_s"))
    return Exemplar(float(value), bytes(trace_id).decode(), bytes(span_id).decode(), float(at_s)) if at_s else None
