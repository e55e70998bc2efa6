"""From a step of the engine to rows of circuits: whose they are, and which circuit looks at which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.manifest import TokenSpan
from sidecar.circuits.activity import Rows
from sidecar.circuits.circuit import Bank
from sidecar.reading.circuit_readings import CircuitReadings
from sidecar.reading.circuits import PlannedCircuit
from sidecar.reading.gates import PHASES
from sidecar.types import BoolArray, IndexArray, Segments, StepBatch


class Steps:
    """Turns steps into rows, for the circuits of one plan.

    requests_are_sessions: a request that names no session is one of its own; otherwise it is nobody's, and no evidence.
    """

    def __init__(self, circuits: Sequence[PlannedCircuit], bank: Bank, *, requests_are_sessions: bool) -> None:
        self._circuits = tuple(circuits)
        self._bank = bank
        self._requests_are_sessions = requests_are_sessions
        self._spans = any(one.span is not TokenSpan.ALL for one in circuits)

    def rows(self, readings: CircuitReadings, batch: StepBatch) -> Rows | None:
        """The step's traffic: no canaries, no rows of adapters, which are of other weights. None if nothing is left."""
        segments = batch.segments
        ours = traffic(segments)
        owners = np.repeat(np.arange(len(segments)), segments.rows)  # [T]
        ids, sessions = self._sessions(batch)
        slices = self._slices(segments)
        wanted = self._wanted(readings, segments)
        if ours is None:
            return Rows(readings.values, segments.positions, slices[owners], sessions[owners], ids, wanted)
        at = np.flatnonzero(ours[owners])
        if not len(at):
            return None
        owners = owners[at]
        return Rows(
            readings.values[at],
            segments.positions[at],
            slices[owners],
            sessions[owners],
            ids,
            None if wanted is None else wanted[:, at],
        )

    def traceparents(self, batch: StepBatch, rows: Rows) -> Sequence[str]:
        """By session of ``rows``, which are the step's: the header of a request of it, "" if none has one. Canaries have none."""
        segments = batch.segments
        ours = traffic(segments)
        if ours is None and len(rows.session_ids) == len(segments):
            return segments.traceparents  # a segment each, in their order
        _, sessions = self._sessions(batch)
        found = [""] * len(rows.session_ids)
        for at, session in enumerate(sessions.tolist()):
            if ours is None or ours[at]:
                found[session] = found[session] or segments.traceparents[at]
        return found

    def _slices(self, segments: Segments) -> IndexArray:
        """[G]."""
        bank = self._bank
        if not bank.named_slices:
            return np.zeros(len(segments), np.intp)
        routes = segments.routes or ("",) * len(segments)
        return np.array([bank.slice_of(route) for route in routes], np.intp)

    def _sessions(self, batch: StepBatch) -> tuple[tuple[str, ...], IndexArray]:
        """The sessions of the step, each once, and [G] which of them each segment belongs to; "" is nobody's."""
        segments = batch.segments
        named: Sequence[str] = segments.session_id_hashes or ("",) * len(segments)
        if self._requests_are_sessions:
            pairs = zip(named, segments.request_ids, strict=True)
            # A space is in no id: a request is never taken for a session that somebody names.
            named = [name or f"{batch.engine_id} {request}" for name, request in pairs]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
        return tuple(numbers), np.array([numbers[name] for name in named], np.intp)

    def _wanted(self, readings: CircuitReadings, segments: Segments) -> BoolArray | None:
        """[C, T], None if every circuit looks at every row."""
        there = [readings.read.issuperset(one.taps) for one in self._circuits]
        if all(there) and not self._spans:
            return None
        made = np.repeat(np.array(there)[:, None], segments.token_count, axis=1)
        phases = np.repeat(segments.phases, segments.rows)
        for number, one in enumerate(self._circuits):
            if one.span in PHASES:
                made[number] &= np.isin(phases, PHASES[one.span])
        return made


def traffic(segments: Segments) -> BoolArray | None:
    """[G], False for canaries and adapters; None if there are none."""
    if not any(segments.canaries) and not any(segments.adapters):
        return None
    kept = np.ones(len(segments), np.bool_)
    if segments.canaries:
        kept &= ~np.array(segments.canaries)
    if segments.adapters:
        kept &= np.array([not adapter for adapter in segments.adapters])
    return kept
