"""The sidecar's nouns as wire messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.errors import DropReason
from sidecar.ingest import circuit_status
from sidecar.ledger import LedgerCounts
from sidecar.outcome import Result
from sidecar.reading.plan import Plan
from sidecar.snapshot import ArtifactSnapshot, Histogram, Snapshot
from sidecar.types import Action, Mode, ModelIdentity, SamplingPolicy, Site, Stack, TapPoint


@dataclass(frozen=True, slots=True)
class Settings:
    """What the taps are asked to do now."""

    plan: Plan | None
    sampling: SamplingPolicy
    mode: Mode = Mode.RAW
    sampled_steps: float = 0.0
    at_deadline: Action = Action.ALLOW


_SITES = dict(zip(Site, (ingest_pb2.SITE_RESID_POST, ingest_pb2.SITE_ATTN_HEADS, ingest_pb2.SITE_MLP_OUT), strict=True))
_STACKS = {Stack.DECODER: ingest_pb2.STACK_UNSPECIFIED, Stack.ENCODER: ingest_pb2.STACK_ENCODER}
_MODES = {Mode.RAW: ingest_pb2.CAPTURE_MODE_RAW, Mode.PROJECTED: ingest_pb2.CAPTURE_MODE_PROJECTED}
_ACTIONS = {
    Action.ALLOW: ingest_pb2.ACTION_ALLOW,
    Action.FLAG: ingest_pb2.ACTION_FLAG,
    Action.BLOCK: ingest_pb2.ACTION_BLOCK,
    Action.ESCALATE: ingest_pb2.ACTION_ESCALATE,
}
_MAX_UINT64 = (1 << 64) - 1


def tap_point(where: TapPoint) -> ingest_pb2.TapPoint:
    return ingest_pb2.TapPoint(layer=where.layer, site=_SITES[where.site], stack=_STACKS[where.stack])


def control(settings: Settings, ring_ticket: bytes = b"") -> ingest_pb2.Control:
    sampling = settings.sampling
    return ingest_pb2.Control(
        plan_generation=0 if settings.plan is None else settings.plan.generation,
        sampling=ingest_pb2.SamplingPolicy(
            request_fraction=sampling.request_fraction,
            token_stride=sampling.token_stride,
            first_tokens=sampling.first_tokens,
            last_tokens=sampling.last_tokens,
        ),
        tap_points=[] if settings.plan is None else [tap_point(where) for where in settings.plan.taps],
        mode=_MODES[settings.mode],
        sampled_steps=settings.sampled_steps,
        ring_ticket=ring_ticket,
        at_deadline=_ACTIONS[settings.at_deadline],
    )


def result(made: Result) -> ingest_pb2.StepResult:
    outcome = ingest_pb2.OUTCOME_SCORED
    if not made.scored:
        outcome = ingest_pb2.OUTCOME_DROPPED if isinstance(made.reason, DropReason) else ingest_pb2.OUTCOME_REJECTED
    wire = ingest_pb2.StepResult(
        batch_id=made.batch_id,
        outcome=outcome,
        reason="" if made.reason is None else made.reason.value,
        field=made.field,
        plan_generation=made.plan_generation,
        late=made.late,
    )
    for verdict in made.verdicts:
        wire.verdicts.add(
            request_id=verdict.request_id,
            action=_ACTIONS[verdict.action],
            signals=[
                ingest_pb2.SignalReading(name=one.name, score=one.score, threshold=one.threshold)
                for one in verdict.signals
            ],
            read=verdict.read,
            skipped=verdict.skipped,
            late=verdict.late,
        )
    return wire


def without_signals(result: ingest_pb2.StepResult) -> ingest_pb2.StepResult:
    """The result with nothing but the actions: what fits into any reply."""
    for verdict in result.verdicts:
        for field in ("signals", "read", "skipped", "late"):
            verdict.ClearField(field)
    return result


def plan(current: Plan | None, known_generation: int) -> control_pb2.FetchPlanResponse:
    if current is None:
        return control_pb2.FetchPlanResponse()
    wire = control_pb2.FetchPlanResponse(generation=current.generation)
    if current.generation == known_generation:
        return wire
    for where, tap in current.taps.items():
        wire.tensors.add(
            tap_point=tap_point(where),
            width=tap.directions.shape[0],
            columns=tap.columns,
            directions=tap.directions.astype("<f4").tobytes(),
        )
    return wire


def artifact(state: ArtifactSnapshot) -> control_pb2.ArtifactState:
    return control_pb2.ArtifactState(
        name=state.name, version=state.version, evidence=state.evidence, reason=state.reason
    )


def _ledger(counts: LedgerCounts) -> control_pb2.LedgerState:
    return control_pb2.LedgerState(
        received=counts.received,
        scored=counts.scored,
        dropped=sum(counts.dropped.values()),
        rejected=sum(counts.rejected.values()),
        in_flight=counts.in_flight,
    )


def _model(identity: ModelIdentity) -> control_pb2.ModelIdentity:
    return control_pb2.ModelIdentity(
        **{name: getattr(identity, name) for name in control_pb2.ModelIdentity.DESCRIPTOR.fields_by_name}
    )


def status(now: Snapshot, version: str) -> control_pb2.GetStatusResponse:
    taps = now.taps
    return control_pb2.GetStatusResponse(
        version=version,
        uptime_s=now.uptime_s,
        plan_generation=now.plan_generation,
        step_batches=_ledger(now.step_batches),
        rows=_ledger(now.rows),
        coverage=[
            control_pb2.CoverageState(
                tap_point=one.tap_point.name,
                expected=min(one.expected, _MAX_UINT64),  # an engine that restarts and restarts can add up to more
                seen=one.seen,
                blind=one.blind,
                reason=one.reason,
            )
            for one in now.coverage
        ],
        signals=[
            control_pb2.SignalState(
                name=one.name,
                readings=one.readings,
                mean=one.scores.total / one.readings if one.readings else 0.0,
                detections=one.detections,
                evidence=one.evidence.value,
            )
            for one in now.signals
        ],
        artifacts=[artifact(one) for one in now.artifacts],
        engines=now.engines,
        taps=ingest_pb2.TapLedger(
            sent=taps.sent, ok=taps.ok, refused=taps.refused, unknown=taps.unknown, dropped=taps.dropped
        ),
        spans_exported=now.spans_exported,
        model=None if now.model is None else _model(now.model),
        run=_run(now),
        streams=[control_pb2.EngineState(engine_id=name, transport=transport) for name, transport in now.run.streams],
        circuits=circuit_status.circuits(now.circuits),
        canaries=circuit_status.canaries(now.circuits),
    )


def _run(now: Snapshot) -> control_pb2.RunState:
    run = now.run
    return control_pb2.RunState(
        rung=run.rung,
        rung_reason=run.rung_reason,
        rung_for_s=run.rung_for_s,
        mode=run.mode,
        request_fraction=run.request_fraction,
        budget_s=now.budget_s,
        budget_use_p99=quantile(now.budget_use, 0.99),
        worker=run.worker,
        ledger=run.ledger,
        kernels=[
            control_pb2.KernelState(
                tap_point=one.tap_point.name, rows=one.rows, kernel=one.kernel, microseconds=one.seconds * 1e6
            )
            for one in run.kernels
        ],
        counts_age_s=run.age_s,
    )


def quantile(histogram: Histogram, share: float) -> float:
    """The upper bound of the bucket in which that share is reached; 0 if nothing was observed, infinity beyond the last."""
    reached = np.cumsum(histogram.counts)
    if not reached[-1]:
        return 0.0
    place = int(np.searchsorted(reached, share * reached[-1]))
    return (*histogram.edges, math.inf)[place]
