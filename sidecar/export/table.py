"""The one table of every metric: the collector, the documentation and the alert rules are checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.errors import DropReason, RejectReason
from sidecar.export.http import HttpOutcome
from sidecar.snapshot import ReloadOutcome, Rung, ShardOutcome, ShardState, Stage, Transport
from sidecar.types import Action, Evidence, UnseenReason

PREFIX = "stethoscope_"
ANY_TAP_POINT = "any"  # cannot be a tap point's name: those have the form blocks.<layer>.<site>
PROCESSES = ("control", "worker")
REFUSED = "refused"  # beside the members of Evidence: an artifact that is not read

# Two histograms of 14 buckets for each of 256 probes are 8,700 lines; a page of 20,000 histograms took 4.6 s.
PROBES = 256
TAP_POINTS = 64
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
_BY_TAP_POINT: _By = ((_TAP_POINT,), TAP_POINTS)

METRICS: tuple[Metric, ...] = (
    *_account("step_batches", "Step batches (one message per engine step)"),
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
