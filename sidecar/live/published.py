"""Circuits in a snapshot: made in the control process, of the facts and arrays that the worker published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.circuits.manifest import WATCHED
from sidecar.circuits.detector import UNIT
from sidecar.circuits.tick import SINGLE
from sidecar.judge.buckets import TallyArrays
from sidecar.judge.tally import SCORE_EDGES
from sidecar.live.counts import EVIDENCE, Totals
from sidecar.reading.circuits import PlannedCircuit
from sidecar.reading.plan import Plan
from sidecar.snapshot import CircuitSliceSnapshot, CircuitSnapshot, CircuitsSnapshot, CircuitState, Histogram
from sidecar.types import Evidence

Array = npt.NDArray[Any]
Watching = Mapping[tuple[str, str], tuple[int, int, int, bool]]  # log E, its threshold, silent ticks, learning

MOST_NODES = WATCHED + 2  # of a circuit: those that are read, T^2 and SPE
SHARES = tuple(at / (EVIDENCE - 1) for at in range(EVIDENCE))  # of a session's tokens
MEASURES = ("t2", "spe")


def circuits_snapshot(
    told: Mapping[str, Any] | None, ticks: Mapping[str, int], left: Iterator[Array], plan: Plan | None
) -> CircuitsSnapshot:
    """told: the facts of `Monitor.facts`, None without circuits; left: its arrays come next."""
    if told is None or plan is None:
        return CircuitsSnapshot(ticks=dict(ticks))
    totals = Totals(next(left), next(left), next(left))
    scores = list(SCORE_EDGES.histograms(TallyArrays(next(left), next(left), next(left))))
    watched: Watching = {(circuit, name): tuple(rest) for circuit, name, *rest in told["watched"]}
    tick_s = float(told["tick_s"])
    sessions = told["sessions"]
    made, first = [], 0
    for number, one in enumerate(plan.circuits):
        stop = first + len(one.circuit.nodes)
        slices = [
            _slice(name, totals.single[number, at], totals.evidence[number, at], watched.get((one.name, name)), tick_s)
            for at, name in enumerate(told["slices"])
        ]
        made.append(_circuit(one, scores[number], totals.active[first:stop].tolist(), slices, watched))
        first = stop
    return CircuitsSnapshot(
        tuple(made),
        tick_s,
        dict(ticks),
        {name: sessions[name] for name in ("evicted", "forgotten")},
        {name: sessions[name] for name in ("unnamed", "elsewhere")},
        told["sessions_remembered"],
        told["tokens_left_out"],
        told["bytes"],
        told["false_alarms_promised"],
        nameless=told["nameless"],
    )


def _circuit(
    one: PlannedCircuit, scores: Histogram, active: list[int], slices: list[CircuitSliceSnapshot], watched: Watching
) -> CircuitSnapshot:
    learning = [what[3] for (circuit, _), what in watched.items() if circuit == one.name]
    return CircuitSnapshot(
        one.name,
        one.version,
        one.digest,
        one.circuit.spec_hash,
        one.circuit.model_hash,
        one.evidence,
        one.severity.value,
        _state(one, learning=not learning or any(learning)),
        one.reason,
        one.may_page and bool(learning) and not any(learning),
        tuple((node.name, count) for node, count in zip(one.circuit.nodes, active, strict=True)),
        scores,
        tuple(slices),
        {measure: active[at] for measure, at in zip(MEASURES, one.unusual, strict=False)},
    )


def _state(one: PlannedCircuit, *, learning: bool) -> CircuitState:
    if one.evidence is Evidence.STALE:
        return CircuitState.STALE
    if one.reason:
        return CircuitState.DRAFT
    return CircuitState.LEARNING if learning else CircuitState.VALIDATED


def _slice(
    name: str, single: Array, evidence: Array, watched: tuple[int, int, int, bool] | None, tick_s: float
) -> CircuitSliceSnapshot:
    counts = dict(zip(SINGLE, single.tolist(), strict=True))
    total = float(np.dot(evidence, SHARES))
    sessions = Histogram(SHARES[:-1], evidence, total)
    made = CircuitSliceSnapshot(
        name,
        counts["rows"],
        counts["engaged"],
        counts["non_finite"],
        counts["clipped"],
        counts["sinks"],
        counts["short"],
        sessions,
    )
    if watched is None:
        return made
    log_e, threshold, silent, _ = watched
    return replace(
        made,
        log_evidence=max(0, log_e) / UNIT,
        log_threshold=threshold / UNIT,
        silent_s=silent * tick_s,
    )
