"""Rows of canaries: what the engine makes of prompts that are always the same, kept apart from traffic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from sidecar.reading.canary import SIZE
from sidecar.reading.circuit_readings import CircuitReadings
from sidecar.reading.plan import Plan
from sidecar.types import FloatArray, Segments, TapPoint

LAST = 8  # positions of a prompt, from its end: an engine that knows the rest from its cache computes these
KEPT = 4096  # rows that wait for the control process: two rounds of the largest set
PREFIX = "canary-"  # of the route by which a prompt is known


@dataclass(frozen=True, slots=True)
class CanaryRow:
    """One token. name: the prompt's route; offset: its position, from the prompt's end: -1 is the last token.

    values: float32, the circuits' places, then a fingerprint of 64 for each tap point of `taps_of`; NaN where it was not read.
    """

    generation: int
    name: str
    offset: int
    values: FloatArray


def taps_of(plan: Plan) -> tuple[TapPoint, ...]:
    """The tap points that are fingerprinted: those of circuits, in the order in which the model computes."""
    return tuple(sorted(where for where, tap in plan.taps.items() if tap.circuits is not None))


class CanaryRows:
    """Owned by the pipeline's thread. Bounded: where nobody comes for them, the oldest go and are counted."""

    def __init__(self) -> None:
        self._kept: deque[CanaryRow] = deque()
        self.lost = 0
        self.unknown = 0  # rows whose place in their prompt is not known

    def add(self, plan: Plan, readings: CircuitReadings, segments: Segments) -> None:
        """The step's canaries, if it has any."""
        if readings.canaries is None:
            return
        fingerprints = np.full((len(readings.canaries), len(taps_of(plan)), SIZE), np.nan, np.float32)
        for at, where in enumerate(taps_of(plan)):
            if where in readings.fingerprints:
                fingerprints[readings.canaries, at] = readings.fingerprints[where]
        for group in np.flatnonzero(np.array(segments.canaries)).tolist():
            self._add(plan.generation, readings, fingerprints, segments, group)

    def _add(
        self, generation: int, readings: CircuitReadings, fingerprints: FloatArray, segments: Segments, group: int
    ) -> None:
        prompt = int(segments.prompt_tokens[group])
        route = segments.routes[group] if segments.routes else ""
        start = int(segments.starts[group])
        if not prompt or not route.startswith(PREFIX):
            self.unknown += int(segments.rows[group])
            return
        for row in range(start, start + int(segments.rows[group])):
            offset = int(segments.positions[row]) - prompt
            if -LAST <= offset < 0:
                values = np.concatenate((readings.values[row], fingerprints[row].reshape(-1)))
                self._kept.append(CanaryRow(generation, route, offset, values))
        while len(self._kept) > KEPT:
            self._kept.popleft()
            self.lost += 1

    def take(self) -> tuple[CanaryRow, ...]:
        """All of them; they are the caller's now."""
        taken = tuple(self._kept)
        self._kept.clear()
        return taken
