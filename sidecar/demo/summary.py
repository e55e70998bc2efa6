"""The demo's summary: all of it counted by the sidecar, but what its clients were answered, and what was raised and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from protos.stethoscope.v1 import control_pb2
from sidecar.demo.course import Course, Raised
from sidecar.demo.traffic import Answered


def summarise(status: control_pb2.GetStatusResponse, traffic: Answered, course: Course) -> dict[str, Any]:
    return {
        "requests": traffic.requests,
        "stopped": traffic.stopped,
        "tap": {name: getattr(status.taps, name) for name in ("sent", "ok", "refused", "unknown", "dropped")},
        "step_batches": _ledger(status.step_batches),
        "rows": _ledger(status.rows),
        "signals": {
            one.name: {
                "readings": one.readings,
                "mean": one.mean,
                "detections": one.detections,
                "evidence": one.evidence,
            }
            for one in status.signals
        },
        "coverage": {one.tap_point: {"expected": one.expected, "seen": one.seen} for one in status.coverage},
        "spans_exported": status.spans_exported,
        "circuits": {one.name: _circuit(one) for one in status.circuits},
        **_course(course),
    }


def _ledger(one: control_pb2.LedgerState) -> dict[str, int]:
    return {name: getattr(one, name) for name in ("received", "scored", "dropped", "rejected", "in_flight")}


def _circuit(one: control_pb2.CircuitState) -> dict[str, Any]:
    (part,) = one.slices
    return {
        "state": one.state,
        "tokens": part.tokens,
        "engaged": part.engaged,
        "sessions": part.sessions,
        "evidence": part.log_evidence if part.HasField("log_evidence") else None,
        "threshold": part.log_threshold if part.HasField("log_threshold") else None,
        "canary_distance": one.canary_distance if one.HasField("canary_distance") else None,
        "canary_moved": one.canary_moved,
    }


def _course(course: Course) -> dict[str, Any]:
    """Seconds since the course began. alerts: what would have reached people; alarms: of circuits, also those held back."""
    return {
        "planted": course.plant,
        "as_planted": course.as_planted,
        "phases": {phase.value: round(at_s, 1) for phase, at_s in course.phases.items()},
        "reference": None if course.learned is None else asdict(course.learned),
        "alerts": _raised(course.alerts),
        "alarms": _raised(course.alarms),
    }


def _raised(all_of_them: Sequence[Raised]) -> list[dict[str, Any]]:
    return [
        asdict(one.what)
        | {
            "after_s": round(one.after_s, 1),
            "after_plant_s": None if one.after_plant_s is None else round(one.after_plant_s, 1),
        }
        for one in all_of_them
    ]
