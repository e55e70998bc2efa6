"""The one table of every metric: the collector, the documentation and the alert rules are checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.errors import DropReason, RejectReason
from sidecar.export.http import HttpOutcome
from sidecar.live.alarms import Cause
from sidecar.snapshot import CircuitState, ReloadOutcome, Rung, ShardOutcome, ShardState, Stage, Transport
from sidecar.types import Action, Evidence, UnseenReason

PREFIX = "stethoscope_"
ANY_TAP_POINT = "any"  # cannot be a tap point's name: those have the form blocks.<layer>.<site>
PROCESSES = ("control", "worker")
REFUSED = "refused"  # beside the members of Evidence: an artifact that is not read

# Two histograms of 14 buckets for each of 256 probes are 8,700 lines; a page of 20,000 histograms took 4.6 s.
PROBES = 256
TAP_POINTS = 64
# What is counted of one circuit is 1.5 KiB of a page in each slice, and its histograms are 30 lines.
CIRCUITS = 32
SLICES = 8
NODES = 18  # of a circuit: 16 that are read, T^2 and SPE
KERNELS = 8  # sizes of a step for which a tap point may have a kernel of its own


class Kind(StrEnum):
    """The types of the exposition format that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class LeftOut(StrEnum):
    """Why a scrape shows less than the snapshot has."""

    CAP = "cap"
    LABEL = "label"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Label:
    """A label: either a closed set of values, or names that were validated when an artifact or a tap point was read."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed. ``cap`` bounds its label sets; a histogram has a line per bucket for each."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    cap: int = 1
    unit: str = ""

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


_PROBE = Label("probe", source="name in the artifact's manifest")
_VERSION = Label("version", source="version in the artifact's manifest")
_TAP_POINT = Label("tap_point", source="tap points of the plan")
_CIRCUIT = Label("circuit", source="name in the circuit's manifest")
_SLICE = Label("slice", source="routes of the configuration, `other` and `all`")
_BOOLEAN = ("true", "false")
_EVIDENCE = tuple(Evidence)


_By = tuple[tuple[Label, ...], int]  # labels, and how many label sets they can make
_ALONE: _By = ((), 1)


def _closed(name: str, values: type[StrEnum] | tuple[str, ...]) -> _By:
    label = Label(name, tuple(str(value) for value in values))
    return (label,), len(label.values)


def _counter(name: str, text: str, by: _By = _ALONE) -> Metric:
    return Metric(f"{PREFIX}{name}_total", Kind.COUNTER, text, *by)


def _gauge(name: str, text: str, by: _By = _ALONE, *, unit: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", Kind.GAUGE, text, *by, unit)


def _histogram(name: str, text: str, by: _By = _ALONE, *, unit: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", Kind.HISTOGRAM, text, *by, unit)


def _account(unit: str, what: str) -> tuple[Metric, ...]:
    """Make the metrics of one identity: received = scored + sum(dropped) + sum(rejected) + in_flight."""
    return (
        _counter(f"{unit}_received", f"{what} received."),
        _counter(f"{unit}_scored", f"{what} read and judged."),
        _counter(f"{unit}_dropped", f"{what} given up by the sidecar, or late.", _closed("reason", DropReason)),
        _counter(f"{unit}_rejected", f"{what} refused: the sender's fault.", _closed("reason", RejectReason)),
        _gauge(f"{unit}_in_flight", f"{what} received and not yet ended."),
    )


_BY_PROBE: _By = ((_PROBE,), PROBES)
_BY_CIRCUIT: _By = ((_CIRCUIT,), CIRCUITS)
_BY_SLICE: _By = ((_CIRCUIT, _SLICE), CIRCUITS * SLICES)
_BY_TAP_POINT: _By = ((_TAP_POINT,), TAP_POINTS)

_CIRCUIT_METRICS = (
    Metric(
        f"{PREFIX}circuit_info",
        Kind.INFO,
        "Every circuit in force: on what evidence, and of which spec and model its sketches are.",
        (
            _CIRCUIT,
            _VERSION,
            Label("evidence", _EVIDENCE),
            Label("severity", ("page", "ticket")),
            Label("may_page", _BOOLEAN),
            Label("spec", source="first 12 digits of the spec's SHA-256"),
            Label("model", source="first 12 digits of the SHA-256 of the weights that are served"),
        ),
        CIRCUITS,
    ),
    Metric(
        f"{PREFIX}circuit_state",
        Kind.GAUGE,
        "1 for what a circuit is worth on the model that is served.",
        (_CIRCUIT, *_closed("state", CircuitState)[0]),
        CIRCUITS * len(CircuitState),
    ),
    _counter(
        "circuit_tokens", "Tokens that were sketched: counted, like all of circuits, when a tick closes.", _BY_SLICE
    ),
    _counter("circuit_tokens_engaged", "Of those, tokens at which the circuit was engaged.", _BY_SLICE),
    _histogram(
        "circuit_score_ratio",
        "1 / (1 + exp(theta - S)) of every token's score S: above one half is engaged. Exact to a 64th of the score's range.",
        _BY_CIRCUIT,
        unit="ratio",
    ),
    Metric(
        f"{PREFIX}circuit_node_active_total",
        Kind.COUNTER,
        "Tokens at which a node of the circuit was active.",
        (_CIRCUIT, Label("node", source="nodes in the circuit's manifest, and T^2 and SPE of its basis")),
        CIRCUITS * NODES,
    ),
    Metric(
        f"{PREFIX}circuit_tokens_unusual_total",
        Kind.COUNTER,
        "Tokens beyond the 99.9 % point of the traffic that the circuit was made on: within its usual directions, or off them.",
        (_CIRCUIT, *_closed("measure", ("t2", "spe"))[0]),
        2 * CIRCUITS,
    ),
    Metric(
        f"{PREFIX}circuit_tokens_excluded_total",
        Kind.COUNTER,
        "Tokens that were read and not sketched: not finite, or at the first positions of a sequence.",
        (_CIRCUIT, *_closed("reason", ("non_finite", "sink"))[0]),
        2 * CIRCUITS,
    ),
    _counter("circuit_activities_clipped", "Activities beyond what a sketch holds, counted at its edge.", _BY_CIRCUIT),
    _counter("circuits_tokens_left_out", "Tokens that no circuit sketched because of the ladder."),
    _histogram(
        "circuit_session_engaged_ratio",
        "Sessions that bet, by the share of their sampled tokens that was engaged: sum by (le) is that of a fleet.",
        _BY_SLICE,
        unit="ratio",
    ),
    _counter("circuit_sessions_short", "Sessions that ended without tokens enough to bet.", _BY_SLICE),
    _counter(
        "circuits_session_rows_unused",
        "Rows that are no evidence: of no session, or of one that bets on another replica.",
        _closed("reason", ("unnamed", "elsewhere")),
    ),
    _counter(
        "circuits_sessions_given_up",
        "Sessions given up for want of room: before they had bet, or after.",
        _closed("reason", ("evicted", "forgotten")),
    ),
    _gauge("circuits_sessions_remembered", "Sessions of which it is known whether they have bet."),
    _gauge(
        "circuit_evidence_log",
        "log E of the detector: evidence that a circuit's share of engaged tokens moved.",
        _BY_SLICE,
    ),
    _gauge(
        "circuit_evidence_threshold_ratio",
        "log E as a share of its threshold's; at 1 there is an alarm.",
        _BY_SLICE,
        unit="ratio",
    ),
    _gauge(
        "circuit_silent_seconds", "Time without a session that bet: no data is no evidence.", _BY_SLICE, unit="seconds"
    ),
    _counter(
        "circuits_ticks",
        "Ticks, by what became of them.",
        _closed("outcome", ("closed", "late", "repeated", "missed", "lost")),
    ),
    Metric(
        f"{PREFIX}circuit_alarm",
        Kind.GAUGE,
        "1 for an alarm that has been diagnosed and has not cooled.",
        (
            _CIRCUIT,
            _SLICE,
            Label("severity", ("page", "ticket")),
            Label("cause", tuple(Cause)),
            Label("leans", ("more", "less")),
        ),
        CIRCUITS * SLICES,
    ),
    Metric(
        f"{PREFIX}circuit_alarms_total",
        Kind.COUNTER,
        "Alarms, by what they turned out to be about.",
        (_CIRCUIT, _SLICE, Label("cause", tuple(Cause))),
        CIRCUITS * SLICES * len(Cause),
    ),
    _gauge(
        "circuits_false_alarms_promised",
        "False alarms in 30 days, at most, by the guarantee of all detectors together.",
    ),
    _counter("circuits_archive_rows", "Rows of sketches for the archive.", _closed("outcome", ("written", "lost"))),
    _counter("circuits_alarm_records", "Records of alarms.", _closed("outcome", ("written", "lost"))),
    _counter("circuits_looks_failed", "Looks at the worker's ticks that came to nothing; the next one has them."),
    _gauge(
        "circuit_canary_distance",
        "How far a circuit's activities on canaries have moved, in floors of noise.",
        _BY_CIRCUIT,
    ),
    _gauge("circuit_canary_moved", "1 if two rounds in a row say that the circuit has moved.", _BY_CIRCUIT),
    _gauge(
        "canary_distance",
        "How far hidden states of canaries have moved, in floors of noise.",
        ((_TAP_POINT,), TAP_POINTS),
    ),
    _gauge(
        "canary_moved", "1 if two rounds in a row say that the hidden states have moved.", ((_TAP_POINT,), TAP_POINTS)
    ),
    Metric(
        f"{PREFIX}canary_first_moved_info",
        Kind.INFO,
        "The first tap point, in the order in which the model computes, whose hidden states have moved.",
        (_TAP_POINT,),
    ),
    _gauge("canary_configured", "1 if canaries are to be sent."),
    _gauge("canary_recorded", "1 if there is a reference to compare canaries with."),
    _gauge("canary_age_seconds", "Time since the newest round of canaries that was whole.", unit="seconds"),
    _counter(
        "canary_rounds", "Rounds of canaries, by how they ended.", _closed("outcome", ("whole", "partial", "failed"))
    ),
    _gauge("deploy_window", "1 while a deploy window is open: the model is meant to change."),
    _gauge(
        "deploy_windows_unsound", "1 if the file of deploy windows was changed or cannot be read: then none is open."
    ),
    _gauge("circuits_tick_seconds", "Length of a tick.", unit="seconds"),
    _gauge(
        "circuits_memory_bytes",
        "What sketches, sessions and detectors hold, from the first row to the last.",
        unit="bytes",
    ),
)

METRICS: tuple[Metric, ...] = (
    *_account("step_batches", "Step batches (one message for an engine step, or for a few in a row)"),
    *_account("rows", "Rows (one token at one tap point)"),
    _histogram("probe_score", "Calibrated score of every token that the probe read.", _BY_PROBE),
    _histogram("probe_request_score", "Calibrated, aggregated score of every ended request.", _BY_PROBE),
    _counter("probe_detections", "Requests whose score crossed the probe's threshold.", _BY_PROBE),
    _counter(
        "probe_detections_estimated",
        "Detections, each counted for the requests that it stands for while fewer are sampled.",
        _BY_PROBE,
    ),
    _gauge("probe_threshold", "Score above which the probe flags a request.", _BY_PROBE),
    _gauge(
        "probe_target_false_positive_ratio",
        "Share of benign requests that the threshold was chosen to flag by mistake.",
        _BY_PROBE,
        unit="ratio",
    ),
    Metric(
        f"{PREFIX}signal_info",
        Kind.INFO,
        "Every probe in force: what it reads, where, and on what evidence.",
        (
            _PROBE,
            _VERSION,
            Label("digest", source="first 12 digits of the artifact's SHA-256"),
            Label("evidence", _EVIDENCE),
            _TAP_POINT,
            Label("aggregation", source="aggregation in the artifact's manifest, a closed set there"),
            Label("certified", _BOOLEAN),
        ),
        PROBES,
    ),
    _gauge("artifacts", "Artifacts in the folder, by evidence.", _closed("evidence", (*_EVIDENCE, REFUSED))),
    _counter(
        "artifact_reloads", "Looks at a changed artifact folder, by how they ended.", _closed("outcome", ReloadOutcome)
    ),
    _gauge("plan_generation", "Generation of the plan in force; it grows by one at every reload."),
    _histogram("stage_duration_seconds", "Time of one step in one stage.", _closed("stage", Stage), unit="seconds"),
    _gauge("step_budget_seconds", "Time allowed from last byte received to verdict written.", unit="seconds"),
    _histogram("step_budget_use_ratio", "Share of the budget that a step used; 1 is all of it.", unit="ratio"),
    _histogram("queue_age_seconds", "Time between a batch being sent and its turn.", unit="seconds"),
    _gauge("rung", "1 for the rung of the ladder in force: how much of the work is done.", _closed("rung", Rung)),
    _counter("rung_changes", "Times that a rung was entered.", _closed("rung", Rung)),
    _counter(
        "verdicts",
        "What was said of requests: of flagged ones in every step, of all of them to a caller that waits.",
        _closed("action", Action),
    ),
    _counter(
        "verdicts_late", "Verdicts that came after their deadline: whoever waited had the policy's answer by then."
    ),
    _gauge("sampling_request_fraction", "Share of the requests that the taps are asked to send."),
    _gauge("engine_streams", "Open streams of engines, by how their batches come.", _closed("transport", Transport)),
    Metric(
        f"{PREFIX}kernel_info",
        Kind.INFO,
        "What multiplies a tap point's steps of so many rows and more, as its calibration chose.",
        (
            _TAP_POINT,
            Label("rows", source="sizes that are calibrated"),
            Label("kernel", source="kernels of this package"),
        ),
        KERNELS * TAP_POINTS,
    ),
    _gauge(
        "shards",
        "Further processes that multiply; one that is lost is not started again.",
        _closed("state", ShardState),
    ),
    _counter(
        "shard_tensors",
        "Tensors at tap points that are dealt to a shard, by who multiplied them: the shard, the shard too late, or the worker.",
        _closed("by", ShardOutcome),
    ),
    _counter("projection_rows_checked", "Rows projected by a tap that were computed again from the raw row."),
    _counter("projection_rows_wrong", "Of those, rows whose readings were not the tap's."),
    _gauge(
        "counts_age_seconds",
        "How old the counts on this page are: the worker was busy, or frozen, since.",
        unit="seconds",
    ),
    _counter("tokens_expected", "Tokens that the engine computed and that were to be captured.", _BY_TAP_POINT),
    _counter("tokens_seen", "Tokens whose rows arrived.", _BY_TAP_POINT),
    _counter("tokens_unseen", "Tokens without a row for a known reason.", _closed("reason", UnseenReason)),
    Metric(
        f"{PREFIX}positive_control_rows_total",
        Kind.COUNTER,
        "Rows that the positive control read, by whether its reading lay where it must.",
        (_TAP_POINT, Label("in_range", _BOOLEAN)),
        2 * TAP_POINTS,
    ),
    Metric(
        f"{PREFIX}blind",
        Kind.GAUGE,
        '1 if a tap point is not proved to be seen; "any" is 1 if one is blind or an engine proves nothing.',
        (Label("tap_point", source=f'tap points of the plan, and "{ANY_TAP_POINT}"'),),
        1 + TAP_POINTS,
    ),
    *_CIRCUIT_METRICS,
    _gauge("engines_connected", "Engines now connected."),
    _counter("engines_refused", "Registrations refused, for example of another model."),
    _counter("tap_batches_sent", "Batches that connected taps gave to the wire; restarts when an engine does."),
    _counter(
        "tap_batches",
        "What connected taps know of the batches they made; dropped ones were never sent.",
        _closed("outcome", ("ok", "refused", "unknown", "dropped")),
    ),
    _gauge("requests_tracked", "Requests with running scores."),
    _counter("requests_evicted", "Requests given up before their end because too many were tracked."),
    _counter("dedup_evicted", "Batch ids forgotten because too many were remembered."),
    _counter("traceparents_ignored", "Trace headers that were not valid; their batches were scored."),
    _counter("spans_exported", "Spans that the collector accepted."),
    _counter("spans_failed", "Spans that the collector refused, or that could not reach it."),
    _counter("spans_dropped", "Spans never sent: the queue was full, or the time at shutdown was over."),
    _counter("evaluation_events_exported", "Evaluation events that the collector accepted."),
    _counter("evaluation_events_failed", "Evaluation events that the collector refused, or that could not reach it."),
    _counter("process_cpu_seconds", "CPU time of the sidecar's processes.", _closed("process", PROCESSES)),
    _gauge(
        "process_resident_memory_bytes",
        "Resident memory of the sidecar's processes; shared pages count in each.",
        _closed("process", PROCESSES),
        unit="bytes",
    ),
    _gauge("process_open_fds", "File descriptors of the sidecar's processes.", _closed("process", PROCESSES)),
    _counter("log_lines_suppressed", "Log lines left out by the rate limit."),
    _counter("http_requests", "Connections to the metrics port, by how they ended.", _closed("outcome", HttpOutcome)),
    _gauge("series_left_out", "Label sets that this scrape does not show.", _closed("reason", LeftOut)),
    _gauge("uptime_seconds", "Time since the sidecar started.", unit="seconds"),
    Metric(f"{PREFIX}build_info", Kind.INFO, "The sidecar that runs.", (Label("version", source="this package"),)),
)

BY_NAME = {metric.name: metric for metric in METRICS}
