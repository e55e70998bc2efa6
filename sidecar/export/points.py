"""What every metric of the table is worth in one snapshot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.errors import DropReason, RejectReason
from sidecar.export.http import HttpOutcome
from sidecar.export.metric import PREFIX
from sidecar.export.table import ANY_TAP_POINT, REFUSED
from sidecar.ledger import LedgerCounts
from sidecar.live.alarms import Cause
from sidecar.live.canary_arrivals import Unused
from sidecar.snapshot import (
    CanarySnapshot,
    CircuitSliceSnapshot,
    CircuitSnapshot,
    CircuitState,
    CoverageSnapshot,
    Exemplar,
    Histogram,
    ProcessSnapshot,
    ReloadOutcome,
    Rung,
    ShardOutcome,
    ShardState,
    SignalSnapshot,
    Snapshot,
    Stage,
    Transport,
)
from sidecar.types import Action, Evidence, UnseenReason


@dataclass(frozen=True, slots=True)
class Point:
    """One label set and its value, in the order of the metric's labels."""

    labels: tuple[str, ...]
    value: float | Histogram
    exemplar: Exemplar | None = None


Reader = Callable[[Snapshot], Iterable[Point]]
DIGEST_DIGITS = 12


def _one(value: float | Histogram) -> tuple[Point]:
    return (Point((), value),)


def _members(
    counts: Mapping[Any, float | Histogram], members: Iterable[str], *, absent: bool = True
) -> Iterator[Point]:
    """Every member, also those never counted: a series that appears late hides its first increase from rate().

    A key that is no member follows, so that it is seen to be left out. absent: whether a member without a count is 0.
    """
    names = [str(member) for member in members]
    for name in names:
        if absent or name in counts:
            yield Point((name,), counts.get(name, 0))
    for key, value in counts.items():
        if key not in names:
            yield Point((str(key),), value)


def _account(unit: str, of: Callable[[Snapshot], LedgerCounts]) -> dict[str, Reader]:
    return {
        f"{unit}_received_total": lambda s: _one(of(s).received),
        f"{unit}_scored_total": lambda s: _one(of(s).scored),
        f"{unit}_dropped_total": lambda s: _members(of(s).dropped, DropReason),
        f"{unit}_rejected_total": lambda s: _members(of(s).rejected, RejectReason),
        f"{unit}_in_flight": lambda s: _one(of(s).in_flight),
    }


def _by_probe(of: Callable[[SignalSnapshot], float | Histogram]) -> Reader:
    return lambda s: (Point((signal.name,), of(signal)) for signal in s.signals)


def _by_tap_point(of: Callable[[CoverageSnapshot], float]) -> Reader:
    return lambda s: (Point((entry.tap_point.name,), of(entry)) for entry in s.coverage)


def _detections(s: Snapshot) -> Iterator[Point]:
    return (Point((signal.name,), signal.detections, signal.detection_exemplar) for signal in s.signals)


def _signal_info(s: Snapshot) -> Iterator[Point]:
    for signal in s.signals:
        labels = (
            signal.name,
            signal.version,
            signal.digest[:DIGEST_DIGITS],
            signal.evidence,
            signal.tap_point.name,
            signal.aggregation,
            _boolean(signal.certified),
        )
        yield Point(labels, 1)


def _artifacts(s: Snapshot) -> Iterator[Point]:
    evidence = [artifact.evidence for artifact in s.artifacts]
    return _members({word: evidence.count(word) for word in evidence}, (*Evidence, REFUSED))


def _stages(s: Snapshot) -> Iterator[Point]:
    return _members(s.stages, Stage, absent=False)


def _control_rows(s: Snapshot) -> Iterator[Point]:
    for entry in s.coverage:
        yield Point((entry.tap_point.name, _boolean(value=True)), entry.control_in_range)
        yield Point((entry.tap_point.name, _boolean(value=False)), entry.control_rows - entry.control_in_range)


def _blind(s: Snapshot) -> Iterator[Point]:
    yield Point((ANY_TAP_POINT,), s.blind)
    yield from _by_tap_point(lambda entry: entry.blind)(s)


def _tap_batches(s: Snapshot) -> Iterator[Point]:
    outcomes = {"ok": s.taps.ok, "refused": s.taps.refused, "unknown": s.taps.unknown, "dropped": s.taps.dropped}
    return _members(outcomes, outcomes)


def _queue_age(s: Snapshot) -> Iterable[Point]:
    return () if s.run.queue_age is None else _one(s.run.queue_age)


def _streams(s: Snapshot) -> Iterator[Point]:
    return _members(Counter(transport for _, transport in s.run.streams), Transport)


def _kernels(s: Snapshot) -> Iterator[Point]:
    return (Point((choice.tap_point.name, str(choice.rows), choice.kernel), 1) for choice in s.run.kernels)


def _by_process(of: Callable[[ProcessSnapshot], float]) -> Reader:
    return lambda s: (Point((one.role,), of(one)) for one in s.processes)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _by_circuit(of: Callable[[CircuitSnapshot], float | Histogram]) -> Reader:
    return lambda s: (Point((one.name,), of(one)) for one in s.circuits.circuits)


def _by_slice(of: Callable[[CircuitSliceSnapshot], float | Histogram | None]) -> Reader:
    """Slices of which it is not known are left out."""

    def points(s: Snapshot) -> Iterator[Point]:
        for one in s.circuits.circuits:
            for part in one.slices:
                value = of(part)
                if value is not None:
                    yield Point((one.name, part.slice), value)

    return points


def _circuit_info(s: Snapshot) -> Iterator[Point]:
    for one in s.circuits.circuits:
        hashes = (one.spec_hash[:DIGEST_DIGITS], one.model_hash[:DIGEST_DIGITS])
        yield Point((one.name, one.version, one.evidence, one.severity, _boolean(one.may_page), *hashes), 1)


def _circuit_state(s: Snapshot) -> Iterator[Point]:
    return (
        Point((one.name, state.value), int(one.state is state)) for one in s.circuits.circuits for state in CircuitState
    )


def _circuit_nodes(s: Snapshot) -> Iterator[Point]:
    return (Point((one.name, node), count) for one in s.circuits.circuits for node, count in one.nodes)


def _unusual(s: Snapshot) -> Iterator[Point]:
    return (Point((one.name, what), count) for one in s.circuits.circuits for what, count in one.unusual.items())


def _excluded(s: Snapshot) -> Iterator[Point]:
    for one in s.circuits.circuits:
        yield Point((one.name, "non_finite"), sum(part.non_finite for part in one.slices))
        yield Point((one.name, "sink"), sum(part.sinks for part in one.slices))


def _share(part: CircuitSliceSnapshot) -> float | None:
    return None if part.log_evidence is None or not part.log_threshold else part.log_evidence / part.log_threshold


def _alarms(s: Snapshot) -> Iterator[Point]:
    return (Point((one.circuit, one.slice, one.severity, one.cause, one.leans), 1) for one in s.circuits.kept.alarms)


def _alarm_counts(s: Snapshot) -> Iterator[Point]:
    """Every cause of every slice that is watched: the first alarm must show as an increase."""
    counts = s.circuits.kept.alarm_counts
    for one in s.circuits.circuits:
        for part in one.slices:
            if part.log_evidence is not None:
                for cause in Cause:
                    yield Point((one.name, part.slice, cause.value), counts.get((one.name, part.slice, cause.value), 0))


def _canaries(s: Snapshot) -> CanarySnapshot:
    return s.circuits.kept.canaries


def _first_moved(s: Snapshot) -> Iterator[Point]:
    if first := _canaries(s).first_moved:
        yield Point((first,), 1)


def _canary_age(s: Snapshot) -> Iterable[Point]:
    age_s = _canaries(s).age_s
    return () if age_s is None else _one(age_s)


def _distances(of: Callable[[CanarySnapshot], Mapping[str, float]]) -> Reader:
    """What could not be compared has no number."""
    return lambda s: (Point((name,), value) for name, value in of(_canaries(s)).items() if math.isfinite(value))


_CIRCUITS: dict[str, Reader] = {
    "circuit_canary_distance": _distances(lambda one: one.circuits),
    "circuit_canary_moved": lambda s: (
        Point((name,), int(name in _canaries(s).moved_circuits)) for name in _canaries(s).circuits
    ),
    "canary_distance": _distances(lambda one: one.layers),
    "canary_moved": lambda s: (Point((name,), int(name in _canaries(s).moved_layers)) for name in _canaries(s).layers),
    "canary_first_moved_info": _first_moved,
    "canary_configured": lambda s: _one(int(_canaries(s).configured)),
    "canary_recorded": lambda s: _one(int(_canaries(s).recorded)),
    "canary_age_seconds": _canary_age,
    "canary_interval_seconds": lambda s: _one(_canaries(s).every_s) if _canaries(s).configured else (),
    "canary_rounds_total": lambda s: _members(_canaries(s).rounds, ("whole", "partial", "failed", "not_compared")),
    "canary_rows_unused_total": lambda s: _members(_canaries(s).unused, Unused),
    "deploy_window": lambda s: _one(int(s.circuits.kept.deploying)),
    "deploy_windows_unsound": lambda s: _one(int(s.circuits.kept.windows_unsound)),
    "circuit_alarm": _alarms,
    "circuit_alarms_total": _alarm_counts,
    "circuits_false_alarms_promised": lambda s: _one(s.circuits.false_alarms_promised),
    "circuits_archive_rows_total": lambda s: _members(s.circuits.kept.archive_rows, ("written", "lost")),
    "circuits_alarm_records_total": lambda s: _members(s.circuits.kept.records, ("written", "lost")),
    "circuits_looks_failed_total": lambda s: _one(s.circuits.kept.failed),
    "circuit_info": _circuit_info,
    "circuit_state": _circuit_state,
    "circuit_tokens_total": _by_slice(lambda part: part.tokens),
    "circuit_tokens_engaged_total": _by_slice(lambda part: part.engaged),
    "circuit_score_ratio": _by_circuit(lambda one: one.scores),
    "circuit_node_active_total": _circuit_nodes,
    "circuit_tokens_unusual_total": _unusual,
    "circuit_tokens_excluded_total": _excluded,
    "circuit_activities_clipped_total": _by_circuit(lambda one: sum(part.clipped for part in one.slices)),
    "circuits_tokens_left_out_total": lambda s: _one(s.circuits.tokens_left_out),
    "circuit_session_engaged_ratio": _by_slice(lambda part: part.sessions),
    "circuit_sessions_short_total": _by_slice(lambda part: part.sessions_short),
    "circuits_session_rows_unused_total": lambda s: _members(s.circuits.session_rows, ("unnamed", "elsewhere")),
    "circuits_sessions_given_up_total": lambda s: _members(s.circuits.sessions_given_up, ("evicted", "forgotten")),
    "circuits_sessions_remembered": lambda s: _one(s.circuits.sessions_remembered),
    "circuit_evidence_log": _by_slice(lambda part: part.log_evidence),
    "circuit_evidence_threshold_ratio": _by_slice(_share),
    "circuit_silent_seconds": _by_slice(lambda part: part.silent_s),
    "circuits_ticks_total": lambda s: _members(
        s.circuits.ticks, ("closed", "late", "repeated", "missed", "lost", "set_back")
    ),
    "circuits_tick_seconds": lambda s: _one(s.circuits.tick_s),
    "circuits_memory_bytes": lambda s: _one(s.circuits.bytes),
}

_UNPREFIXED: dict[str, Reader] = {
    **_account("step_batches", lambda s: s.step_batches),
    **_account("rows", lambda s: s.rows),
    "probe_score": _by_probe(lambda signal: signal.scores),
    "probe_request_score": _by_probe(lambda signal: signal.request_scores),
    "probe_detections_total": _detections,
    "probe_detections_estimated_total": _by_probe(lambda signal: signal.detections_estimated),
    "probe_threshold": _by_probe(lambda signal: signal.threshold),
    "probe_target_false_positive_ratio": _by_probe(lambda signal: signal.target_fpr),
    "signal_info": _signal_info,
    "artifacts": _artifacts,
    "artifact_reloads_total": lambda s: _members(s.reloads, ReloadOutcome),
    "plan_generation": lambda s: _one(s.plan_generation),
    "stage_duration_seconds": _stages,
    "step_budget_seconds": lambda s: _one(s.budget_s),
    "step_budget_use_ratio": lambda s: _one(s.budget_use),
    "queue_age_seconds": _queue_age,
    "rung": lambda s: _members({s.run.rung: 1}, Rung),
    "rung_changes_total": lambda s: _members(s.run.rung_changes, Rung),
    "verdicts_total": lambda s: _members(s.run.verdicts, Action),
    "verdicts_late_total": lambda s: _one(s.run.verdicts_late),
    "sampling_request_fraction": lambda s: _one(s.run.request_fraction),
    "engine_streams": _streams,
    "kernel_info": _kernels,
    "shards": lambda s: _members(s.run.shards.states, ShardState),
    "shard_tensors_total": lambda s: _members(s.run.shards.tensors, ShardOutcome),
    "projection_rows_checked_total": lambda s: _one(s.run.projections_checked),
    "projection_rows_wrong_total": lambda s: _one(s.run.projections_wrong),
    "counts_age_seconds": lambda s: _one(s.run.age_s),
    "tokens_expected_total": _by_tap_point(lambda entry: entry.expected),
    "tokens_seen_total": _by_tap_point(lambda entry: entry.seen),
    "tokens_unseen_total": lambda s: _members(s.unseen, UnseenReason),
    "positive_control_rows_total": _control_rows,
    "blind": _blind,
    **_CIRCUITS,
    "engines_connected": lambda s: _one(s.engines),
    "engines_refused_total": lambda s: _one(s.engines_refused),
    "tap_batches_sent_total": lambda s: _one(s.taps.sent),
    "tap_batches_total": _tap_batches,
    "requests_tracked": lambda s: _one(s.requests_tracked),
    "requests_evicted_total": lambda s: _one(s.requests_evicted),
    "dedup_evicted_total": lambda s: _one(s.dedup_evicted),
    "traceparents_ignored_total": lambda s: _one(s.traceparents_ignored),
    "spans_exported_total": lambda s: _one(s.spans_exported),
    "spans_failed_total": lambda s: _one(s.spans_failed),
    "spans_dropped_total": lambda s: _one(s.spans_queue_dropped),
    "evaluation_events_exported_total": lambda s: _one(s.events_exported),
    "evaluation_events_failed_total": lambda s: _one(s.events_failed),
    "process_cpu_seconds_total": _by_process(lambda one: one.cpu_s),
    "process_resident_memory_bytes": _by_process(lambda one: one.resident_bytes),
    "process_open_fds": _by_process(lambda one: one.open_fds),
    "log_lines_suppressed_total": lambda s: _one(s.log_lines_suppressed),
    "http_requests_total": lambda s: _members(s.http_requests, HttpOutcome),
    "uptime_seconds": lambda s: _one(s.uptime_s),
}

READERS: dict[str, Reader] = {PREFIX + name: reader for name, reader in _UNPREFIXED.items()}
