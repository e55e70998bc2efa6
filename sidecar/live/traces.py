"""Traces of requests that weighed on a circuit's evidence: ids only, a few, for whoever looks into an alarm."""

from __future__ import annotations

from collections import deque

import numpy as np

from sidecar.circuits.activity import SINKS, Activity
from sidecar.reading.circuit_readings import CircuitReadings
from sidecar.traceparent import parse_traceparent
from sidecar.types import StepBatch

KEPT = 8  # of each circuit and side
_STEPS = 32  # one step in so many is looked at: the cost of a step must not grow with the number of traces


class Traces:
    """The newest requests that were most, and least, engaged in a step. Owned by the pipeline's thread."""

    def __init__(self, circuits: int) -> None:
        self._found: dict[tuple[int, str], deque[str]] = {
            (at, side): deque(maxlen=KEPT) for at in range(circuits) for side in ("more", "less")
        }
        self._steps = 0

    def saw(self, batch: StepBatch, readings: CircuitReadings, activity: Activity) -> None:
        segments = batch.segments
        self._steps += 1
        if not segments.traceparents or self._steps % _STEPS or readings.canaries is not None or any(segments.adapters):
            return
        owners = np.repeat(np.arange(len(segments)), segments.rows)[segments.positions >= SINKS]
        many = np.bincount(owners, minlength=len(segments))
        for circuit, engaged in enumerate(activity.engaged):
            share = np.bincount(owners[engaged], minlength=len(segments)) / np.maximum(many, 1)
            share[many == 0] = np.nan
            if np.isnan(share).all():
                return
            for side, at in (("more", np.nanargmax(share)), ("less", np.nanargmin(share))):
                self._keep(circuit, side, segments.traceparents[int(at)])

    def of(self, circuit: int, side: str) -> tuple[str, ...]:
        """Trace ids, the newest first."""
        return tuple(reversed(self._found[circuit, side]))

    def _keep(self, circuit: int, side: str, header: str) -> None:
        parent = parse_traceparent(header, "") if header else None
        if parent is not None and parent.trace_id not in self._found[circuit, side]:
            self._found[circuit, side].append(parent.trace_id)
