"""What of the alerts in deploy/prometheus can come within a demo, told from the status as their rules tell it from /metrics."""

from __future__ import annotations

from dataclasses import dataclass

from protos.stethoscope.v1 import control_pb2

MODEL_CHANGED, ACTIVITY = "CircuitModelChanged", "CircuitActivity"


@dataclass(frozen=True, slots=True)
class Alert:
    """circuit: empty for one about the model."""

    name: str
    diagnosis: str  # "model", "traffic", "both", "data" or "unknown"
    circuit: str = ""
    leans: str = ""


def alerts(now: control_pb2.GetStatusResponse) -> tuple[Alert, ...]:
    """Those that hold now. A model that changed explains what its circuits do: then there is that one, unless it was meant."""
    moved = now.canaries.moved or any(one.canary_moved for one in now.circuits)
    if moved and not now.canaries.deploying:
        return (Alert(MODEL_CHANGED, "model"),)
    return tuple(
        Alert(ACTIVITY, alarm.cause, one.name, alarm.leans)
        for one in now.circuits
        for alarm in one.alarms
        if alarm.open
    )
