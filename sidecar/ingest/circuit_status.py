"""Circuits and canaries as the status tells them."""

from __future__ import annotations

import math

from protos.stethoscope.v1 import control_pb2
from sidecar.snapshot import CircuitSliceSnapshot, CircuitSnapshot, CircuitsSnapshot

_NAMELESS = (
    "no request names a session, so that nobody bets: give each request a hash of its session (docs/circuits.md), or set "
    "circuits.requests_are_sessions=true"
)


def circuits(now: CircuitsSnapshot) -> list[control_pb2.CircuitState]:
    return [_circuit(one, now) for one in now.circuits]


def canaries(now: CircuitsSnapshot) -> control_pb2.CanaryState | None:
    """None if none are sent."""
    told = now.kept.canaries
    if not told.configured:
        return None
    whole = told.rounds.get("whole", 0)
    return control_pb2.CanaryState(
        whole=whole,
        not_whole=sum(told.rounds.values()) - whole,
        recorded=told.recorded,
        age_s=told.age_s,
        moved=told.moved_layers,
        deploying=now.kept.deploying,
    )


def _circuit(one: CircuitSnapshot, now: CircuitsSnapshot) -> control_pb2.CircuitState:
    kept = now.kept
    distance = kept.canaries.circuits.get(one.name, math.nan)
    return control_pb2.CircuitState(
        name=one.name,
        version=one.version,
        state=one.state,
        reason="; ".join(filter(None, (one.reason, _NAMELESS if now.nameless else ""))),
        slices=[_slice(part) for part in one.slices],
        canary_distance=None if math.isnan(distance) else distance,
        canary_moved=one.name in kept.canaries.moved_circuits,
        alarms=[
            control_pb2.CircuitAlarm(
                slice=alarm.slice,
                at_s=alarm.at_s,
                cause=alarm.cause,
                leans=alarm.leans,
                severity=alarm.severity,
                record=alarm.record,
                open=alarm in kept.alarms,
            )
            for alarm in kept.newest
            if alarm.circuit == one.name
        ],
    )


def _slice(one: CircuitSliceSnapshot) -> control_pb2.CircuitSliceState:
    return control_pb2.CircuitSliceState(
        slice=one.slice,
        tokens=one.tokens,
        engaged=one.engaged,
        sessions=int(sum(one.sessions.counts)),
        engaged_sessions=one.sessions.total,
        log_evidence=one.log_evidence,
        log_threshold=one.log_threshold,
    )
