"""Between the tap's nouns and the bytes of protos.stethoscope.v1: everything but step batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.tap.plan import FetchedPlan, PointPlan
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import (
    Action,
    Mode,
    ModelIdentity,
    SamplingPolicy,
    Site,
    Stack,
    TapLedgerCounts,
    TapPoint,
    UnseenReason,
)

FINISHED_IDS = 1024  # a sidecar takes 4096 by default

_SITE = {
    Site.RESID_POST: ingest_pb2.SITE_RESID_POST,
    Site.ATTN_HEADS: ingest_pb2.SITE_ATTN_HEADS,
    Site.MLP_OUT: ingest_pb2.SITE_MLP_OUT,
}
_SITE_OF: dict[int, Site] = {number: site for site, number in _SITE.items()}
_STACK = {Stack.DECODER: ingest_pb2.STACK_UNSPECIFIED, Stack.ENCODER: ingest_pb2.STACK_ENCODER}
_STACK_OF: dict[int, Stack] = {number: stack for stack, number in _STACK.items()}
UNSEEN = {
    UnseenReason.PREFIX_CACHE: ingest_pb2.UNSEEN_REASON_PREFIX_CACHE,
    UnseenReason.SAMPLING: ingest_pb2.UNSEEN_REASON_SAMPLING,
    UnseenReason.TAP_DROPPED: ingest_pb2.UNSEEN_REASON_TAP_DROPPED,
    UnseenReason.GRAPH_REPLAY: ingest_pb2.UNSEEN_REASON_GRAPH_REPLAY,
    UnseenReason.UNSUPPORTED: ingest_pb2.UNSEEN_REASON_UNSUPPORTED,
}
_ACTION: dict[int, Action] = {
    ingest_pb2.ACTION_FLAG: Action.FLAG,
    ingest_pb2.ACTION_BLOCK: Action.BLOCK,
    ingest_pb2.ACTION_ESCALATE: Action.ESCALATE,
}
_NOT_A_FACT = re.compile(r"[^A-Za-z0-9._:/@#+=~ -]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sidecar asks for."""

    plan_generation: int = 0
    policy: SamplingPolicy = field(default_factory=SamplingPolicy)
    tap_points: tuple[TapPoint, ...] = ()
    mode: Mode = Mode.RAW
    sampled_steps: float = 0.0  # in projected mode: the share of steps that carry a sample of raw rows


def settings(control: ingest_pb2.Control) -> Settings:
    """Tap points that this version does not know are left out: they cannot be captured."""
    wire = control.sampling
    policy = SamplingPolicy(
        _share(wire.request_fraction), max(1, wire.token_stride), wire.first_tokens, wire.last_tokens
    )
    points = tuple(_point(one) for one in control.tap_points if _known(one))
    mode = Mode.PROJECTED if control.mode == ingest_pb2.CAPTURE_MODE_PROJECTED else Mode.RAW
    return Settings(control.plan_generation, policy, points, mode, _share(control.sampled_steps))


def _share(value: float) -> float:
    """Between 0 and 1; 0 if it is no number."""
    return min(1.0, max(0.0, value))


def plan_request(known_generation: int) -> bytes:
    return control_pb2.FetchPlanRequest(known_generation=known_generation).SerializeToString()


def fetched_plan(raw: bytes) -> FetchedPlan:
    """Raises ValueError or DecodeError if it is none. Has no points if the caller has this generation already."""
    response = control_pb2.FetchPlanResponse.FromString(raw)
    points = {_point(one.tap_point): _point_plan(one) for one in response.tensors if _known(one.tap_point)}
    return FetchedPlan(response.generation, points)


def _point_plan(tensor: control_pb2.PlanTensor) -> PointPlan:
    directions = np.frombuffer(tensor.directions, "<f4").reshape(tensor.width, len(tensor.columns))
    return PointPlan(tuple(tensor.columns), directions)


def verdicts(result: ingest_pb2.StepResult) -> Iterator[tuple[str, Action, tuple[str, ...]]]:
    """Request, advice and the names of the signals over their thresholds, wherever there is something to do."""
    for verdict in result.verdicts:
        action = _ACTION.get(verdict.action)
        if action is not None:
            yield verdict.request_id, action, tuple(signal.name for signal in verdict.signals)


def register_request(
    engine_id: str,
    model: ModelIdentity,
    traffic: ingest_pb2.TrafficReport,
) -> bytes:
    identity = control_pb2.ModelIdentity(
        name=_fact(model.name),
        architecture=_fact(model.architecture),
        layers=model.layers,
        width=model.width,
        weights_digest=model.weights_digest,
        tokenizer_digest=model.tokenizer_digest,
        dtype=_fact(model.dtype),
        quantisation=_fact(model.quantisation),
        engine=_fact(model.engine),
        engine_version=_fact(model.engine_version),
        encoder_layers=model.encoder_layers,
    )
    return control_pb2.RegisterRequest(engine_id=engine_id, model=identity, traffic=traffic).SerializeToString()


def traffic_report(engine_id: str, counts: TrafficCounts, ledger: TapLedgerCounts) -> ingest_pb2.TrafficReport:
    return ingest_pb2.TrafficReport(
        engine_id=engine_id,
        step=counts.step,
        tokens_computed=counts.tokens_computed,
        unseen=_unseen(counts.unseen),
        requests=counts.requests,
        tap=ingest_pb2.TapLedger(
            sent=ledger.sent,
            ok=ledger.ok,
            refused=ledger.refused,
            unknown=ledger.unknown,
            dropped=ledger.dropped,
        ),
        encoder_tokens_computed=counts.encoder_computed,
        encoder_tokens_left_out=counts.encoder_left_out,
    )


def traffic_message(report: ingest_pb2.TrafficReport) -> bytes:
    return ingest_pb2.StreamRequest(traffic=report).SerializeToString()


def goodbye_message(engine_id: str) -> bytes:
    return ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id=engine_id)).SerializeToString()


def finished_messages(engine_id: str, request_ids: tuple[str, ...]) -> Iterator[bytes]:
    for start in range(0, len(request_ids), FINISHED_IDS):
        body = ingest_pb2.RequestsFinished(engine_id=engine_id, request_ids=request_ids[start : start + FINISHED_IDS])
        yield ingest_pb2.StreamRequest(finished=body).SerializeToString()


def _unseen(counts: Iterable[tuple[UnseenReason, int]]) -> list[ingest_pb2.Unseen]:
    return [ingest_pb2.Unseen(reason=UNSEEN[reason], tokens=tokens) for reason, tokens in counts]


def tap_point(point: TapPoint) -> ingest_pb2.TapPoint:
    return ingest_pb2.TapPoint(layer=point.layer, site=_SITE[point.site], stack=_STACK[point.stack])


def _known(wire: ingest_pb2.TapPoint) -> bool:
    return wire.site in _SITE_OF and wire.stack in _STACK_OF


def _point(wire: ingest_pb2.TapPoint) -> TapPoint:
    return TapPoint(wire.layer, _SITE_OF[wire.site], _STACK_OF[wire.stack])


def _fact(text: str) -> str:
    return _NOT_A_FACT.sub("_", text)[:200]
