"""The one table of every metric: the collector, the documentation and the alert rules are checked against it."""

from __future__ import annotations

from enum import StrEnum

from sidecar.errors import DropReason, RejectReason
from sidecar.export.circuit_metrics import CIRCUIT_METRICS
from sidecar.export.http import HttpOutcome
from sidecar.export.metric import (
    BOOLEAN,
    BY_TAP_POINT,
    EVIDENCE,
    PREFIX,
    TAP_POINT,
    TAP_POINTS,
    VERSION,
    By,
    Kind,
    Label,
    Metric,
    closed,
    counter,
    gauge,
    histogram,
)
from sidecar.snapshot import ReloadOutcome, Rung, ShardOutcome, ShardState, Stage, Transport
from sidecar.types import Action, UnseenReason

ANY_TAP_POINT = "any"  # cannot be a tap point's name: those have the form blocks.<layer>.<site>
PROCESSES = ("control", "worker")
REFUSED = "refused"  # beside the members of Evidence: an artifact that is not read

# Two histograms of 14 buckets for each of 256 probes are 8,700 lines; a page of 20,000 histograms took 4.6 s.
PROBES = 256
KERNELS = 8  # sizes of a step for which a tap point may have a kernel of its own

_PROBE = Label("probe", source="name in the artifact's manifest")
_BY_PROBE: By = ((_PROBE,), PROBES)


class LeftOut(StrEnum):
    """Why a scrape shows less than the snapshot has."""

    CAP = "cap"
    LABEL = "label"
    VALUE = "value"


def _account(unit: str, what: str) -> tuple[Metric, ...]:
    """Make the metrics of one identity: received = scored + sum(dropped) + sum(rejected) + in_flight."""
    return (
        counter(f"{unit}_received", f"{what} received."),
        counter(f"{unit}_scored", f"{what} read and judged."),
        counter(f"{unit}_dropped", f"{what} given up by the sidecar, or late.", closed("reason", DropReason)),
        counter(f"{unit}_rejected", f"{what} refused: the sender's fault.", closed("reason", RejectReason)),
        gauge(f"{unit}_in_flight", f"{what} received and not yet ended."),
    )


METRICS: tuple[Metric, ...] = (
    *_account("step_batches", "Step batches (one message for an engine step, or for a few in a row)"),
    *_account("rows", "Rows (one token at one tap point)"),
    histogram("probe_score", "Calibrated score of every token that the probe read.", _BY_PROBE),
    histogram("probe_request_score", "Calibrated, aggregated score of every ended request.", _BY_PROBE),
    counter("probe_detections", "Requests whose score crossed the probe's threshold.", _BY_PROBE),
    counter(
        "probe_detections_estimated",
        "Detections, each counted for the requests that it stands for while fewer are sampled.",
        _BY_PROBE,
    ),
    gauge("probe_threshold", "Score above which the probe flags a request.", _BY_PROBE),
    gauge(
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
            VERSION,
            Label("digest", source="first 12 digits of the artifact's SHA-256"),
            Label("evidence", EVIDENCE),
            TAP_POINT,
            Label("aggregation", source="aggregation in the artifact's manifest, a closed set there"),
            Label("certified", BOOLEAN),
        ),
        PROBES,
    ),
    gauge("artifacts", "Artifacts in the folder, by evidence.", closed("evidence", (*EVIDENCE, REFUSED))),
    counter(
        "artifact_reloads", "Looks at a changed artifact folder, by how they ended.", closed("outcome", ReloadOutcome)
    ),
    gauge("plan_generation", "Generation of the plan in force; it grows by one at every reload."),
    histogram("stage_duration_seconds", "Time of one step in one stage.", closed("stage", Stage), unit="seconds"),
    gauge("step_budget_seconds", "Time allowed from last byte received to verdict written.", unit="seconds"),
    histogram("step_budget_use_ratio", "Share of the budget that a step used; 1 is all of it.", unit="ratio"),
    histogram("queue_age_seconds", "Time between a batch being sent and its turn.", unit="seconds"),
    gauge("rung", "1 for the rung of the ladder in force: how much of the work is done.", closed("rung", Rung)),
    counter("rung_changes", "Times that a rung was entered.", closed("rung", Rung)),
    counter(
        "verdicts",
        "What was said of requests: of flagged ones in every step, of all of them to a caller that waits.",
        closed("action", Action),
    ),
    counter(
        "verdicts_late", "Verdicts that came after their deadline: whoever waited had the policy's answer by then."
    ),
    gauge("sampling_request_fraction", "Share of the requests that the taps are asked to send."),
    gauge("engine_streams", "Open streams of engines, by how their batches come.", closed("transport", Transport)),
    Metric(
        f"{PREFIX}kernel_info",
        Kind.INFO,
        "What multiplies a tap point's steps of so many rows and more, as its calibration chose.",
        (
            TAP_POINT,
            Label("rows", source="sizes that are calibrated"),
            Label("kernel", source="kernels of this package"),
        ),
        KERNELS * TAP_POINTS,
    ),
    gauge(
        "shards",
        "Further processes that multiply; one that is lost is not started again.",
        closed("state", ShardState),
    ),
    counter(
        "shard_tensors",
        "Tensors at tap points that are dealt to a shard, by who multiplied them: the shard, the shard too late, or the worker.",
        closed("by", ShardOutcome),
    ),
    counter("projection_rows_checked", "Rows projected by a tap that were computed again from the raw row."),
    counter("projection_rows_wrong", "Of those, rows whose readings were not the tap's."),
    gauge(
        "counts_age_seconds",
        "How old the counts on this page are: the worker was busy, or frozen, since.",
        unit="seconds",
    ),
    counter("tokens_expected", "Tokens that the engine computed and that were to be captured.", BY_TAP_POINT),
    counter("tokens_seen", "Tokens whose rows arrived.", BY_TAP_POINT),
    counter("tokens_unseen", "Tokens without a row for a known reason.", closed("reason", UnseenReason)),
    Metric(
        f"{PREFIX}positive_control_rows_total",
        Kind.COUNTER,
        "Rows that the positive control read, by whether its reading lay where it must.",
        (TAP_POINT, Label("in_range", BOOLEAN)),
        2 * TAP_POINTS,
    ),
    Metric(
        f"{PREFIX}blind",
        Kind.GAUGE,
        '1 if a tap point is not proved to be seen; "any" is 1 if one is blind or an engine proves nothing.',
        (Label("tap_point", source=f'tap points of the plan, and "{ANY_TAP_POINT}"'),),
        1 + TAP_POINTS,
    ),
    *CIRCUIT_METRICS,
    gauge("engines_connected", "Engines now connected."),
    counter("engines_refused", "Registrations refused, for example of another model."),
    counter("tap_batches_sent", "Batches that connected taps gave to the wire; restarts when an engine does."),
    counter(
        "tap_batches",
        "What connected taps know of the batches they made; dropped ones were never sent.",
        closed("outcome", ("ok", "refused", "unknown", "dropped")),
    ),
    gauge("requests_tracked", "Requests with running scores."),
    counter("requests_evicted", "Requests given up before their end because too many were tracked."),
    counter("dedup_evicted", "Batch ids forgotten because too many were remembered."),
    counter("traceparents_ignored", "Trace headers that were not valid; their batches were scored."),
    counter("spans_exported", "Spans that the collector accepted."),
    counter("spans_failed", "Spans that the collector refused, or that could not reach it."),
    counter("spans_dropped", "Spans never sent: the queue was full, or the time at shutdown was over."),
    counter("evaluation_events_exported", "Evaluation events that the collector accepted."),
    counter("evaluation_events_failed", "Evaluation events that the collector refused, or that could not reach it."),
    counter("process_cpu_seconds", "CPU time of the sidecar's processes.", closed("process", PROCESSES)),
    gauge(
        "process_resident_memory_bytes",
        "Resident memory of the sidecar's processes; shared pages count in each.",
        closed("process", PROCESSES),
        unit="bytes",
    ),
    gauge("process_open_fds", "File descriptors of the sidecar's processes.", closed("process", PROCESSES)),
    counter("log_lines_suppressed", "Log lines left out by the rate limit."),
    counter("http_requests", "Connections to the metrics port, by how they ended.", closed("outcome", HttpOutcome)),
    gauge("series_left_out", "Label sets that this scrape does not show.", closed("reason", LeftOut)),
    gauge("uptime_seconds", "Time since the sidecar started.", unit="seconds"),
    Metric(f"{PREFIX}build_info", Kind.INFO, "The sidecar that runs.", (Label("version", source="this package"),)),
)

BY_NAME = {metric.name: metric for metric in METRICS}
