"""What a scrape, a status call or a span sees: immutable copies, taken in microseconds, rendered elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from sidecar.ledger import LedgerCounts
from sidecar.types import Evidence, Medium, ModelIdentity, TapLedgerCounts, TapPoint, TraceParent, UnseenReason

CountArray = npt.NDArray[np.int64]


class Stage(StrEnum):
    """Where the time of a step goes, in the order of the work. The only values of the label ``stage``."""

    DECODE = "decode"
    WAIT = "wait"
    READ = "read"
    JUDGE = "judge"
    ACCOUNT = "account"
    SKETCH = "sketch"


class ReloadOutcome(StrEnum):
    """How a look at a changed artifact folder ended."""

    OK = "ok"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation that can be looked up: its value and the trace that it came from."""

    value: float
    trace_id: str
    span_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class NativeBuckets:
    """Base-2 exponential buckets: ``counts[i]`` observations in (2^((first+i-1)/2^schema), 2^((first+i)/2^schema)].

    Observations of at most ``zero_threshold`` are in ``zero_count``. (Prometheus, native histograms.)
    """

    schema: int
    zero_threshold: float
    zero_count: int
    first: int
    counts: CountArray


@dataclass(frozen=True, slots=True)
class Histogram:
    """A classic histogram: ``edges`` are upper bounds, ``counts`` (not cumulative) has one more entry for +Inf.

    ``native``: the same observations in exponential buckets, for scrapers that ask for them.
    """

    edges: tuple[float, ...]
    counts: CountArray  # [len(edges) + 1]
    total: float  # sum of the observations
    exemplars: tuple[Exemplar | None, ...] = ()  # empty, or one place per count
    native: NativeBuckets | None = None


@dataclass(frozen=True, slots=True)
class SignalSnapshot:
    """One probe: who it is, on what evidence, and everything counted since the start."""

    name: str
    version: str
    digest: str
    tap_point: TapPoint
    aggregation: str
    evidence: Evidence
    stale_reason: str
    threshold: float
    target_fpr: float
    certified: bool
    readings: int  # tokens scored
    scores: Histogram  # calibrated score of every token
    requests: int  # requests whose score is final
    request_scores: Histogram  # calibrated, aggregated score of every ended request
    detections: int  # requests that crossed the threshold
    detection_exemplar: Exemplar | None = None
    detections_estimated: float = (
        0.0  # the same, each counted for the requests that it stands for while sampling is lowered
    )


@dataclass(frozen=True, slots=True)
class CoverageSnapshot:
    """One tap point: what should have been seen, and what was. ``reason`` is empty unless blind."""

    tap_point: TapPoint
    expected: int
    seen: int
    blind: bool
    reason: str
    control_rows: int  # rows that the positive control read
    control_in_range: int  # of those, rows whose reading lay where it must


@dataclass(frozen=True, slots=True)
class ArtifactSnapshot:
    """One artifact of the folder as it stands: evidence is "refused" if it is not read."""

    name: str
    version: str
    evidence: str
    reason: str


class CircuitState(StrEnum):
    """What a circuit is worth on the model that is served. The only values of the label ``state``."""

    VALIDATED = "validated"
    LEARNING = "learning"  # validated, and there is no week of sound traffic to compare with
    DRAFT = "draft"  # a gate failed, or it was not validated
    STALE = "stale"  # validated on another model, dtype, quantisation or engine


@dataclass(frozen=True, slots=True)
class CircuitSliceSnapshot:
    """One circuit in one slice of the traffic. Everything that is counted is counted when a tick closes.

    log_evidence: log E, in nats, 0 where E is below 1; and the threshold's. None where no baseline speaks of it.
    """

    slice: str
    tokens: int  # sketched
    engaged: int
    non_finite: int
    clipped: int  # activities
    sinks: int  # tokens left out because they stand at a sequence's first positions
    sessions_short: int  # ended without tokens enough to bet
    sessions: Histogram  # that bet, by the share of their tokens that was engaged
    log_evidence: float | None = None
    log_threshold: float | None = None
    silent_s: float | None = None  # since a session bet


@dataclass(frozen=True, slots=True)
class CircuitSnapshot:
    """One circuit: who it is, what it is worth here, and what was counted of it."""

    name: str
    version: str
    digest: str
    spec_hash: str
    model_hash: str
    evidence: Evidence
    severity: str
    state: CircuitState
    reason: str  # why it may not page; empty if it may
    may_page: bool
    nodes: tuple[tuple[str, int], ...]  # with the tokens at which each was active
    scores: Histogram  # 1 / (1 + exp(theta - S)): above one half is engaged
    slices: tuple[CircuitSliceSnapshot, ...]
    unusual: Mapping[str, int] = field(default_factory=dict)  # tokens beyond the limit, by measure: t2, spe


@dataclass(frozen=True, slots=True)
class CircuitAlarmSnapshot:
    """An alarm that has been diagnosed and has not cooled. record: the name of its file, empty if none was kept."""

    circuit: str
    slice: str
    severity: str
    cause: str
    leans: str  # "more" or "less" engaged than sound traffic
    record: str
    at_s: int = 0  # when its tick began, seconds since the epoch


@dataclass(frozen=True, slots=True)
class CanarySnapshot:
    """The newest rounds of canaries. Distances are in floors of noise; moved: two rounds in a row said so."""

    configured: bool = False
    recorded: bool = False  # the newest round was compared with a reference
    rounds: Mapping[str, int] = field(default_factory=dict)  # "whole", "partial", "failed" or "not_compared"
    age_s: float | None = None  # since the newest whole round
    circuits: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, float] = field(default_factory=dict)  # by tap point
    moved_circuits: tuple[str, ...] = ()
    moved_layers: tuple[str, ...] = ()
    first_moved: str = ""  # the tap point that the model computes first among them: where it was changed, or before
    every_s: float = 0.0  # between two rounds
    unused: Mapping[str, int] = field(default_factory=dict)  # rows of no round, by `Unused`


@dataclass(frozen=True, slots=True)
class KeeperSnapshot:
    """What the control process makes of circuits."""

    alarms: tuple[CircuitAlarmSnapshot, ...] = ()
    alarm_counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)  # by circuit, slice and cause
    archive_rows: Mapping[str, int] = field(default_factory=dict)  # "written" or "lost"
    records: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0  # looks at the worker that came to nothing
    canaries: CanarySnapshot = field(default_factory=CanarySnapshot)
    deploying: bool = False  # a deploy window is open
    windows_unsound: bool = False  # its file was tampered with, or cannot be read: no window is open then
    newest: tuple[CircuitAlarmSnapshot, ...] = ()  # of each circuit and slice, cooled or not


@dataclass(frozen=True, slots=True)
class CircuitsSnapshot:
    """All circuits of the plan, and what it took to follow them."""

    circuits: tuple[CircuitSnapshot, ...] = ()
    tick_s: float = 0.0
    ticks: Mapping[str, int] = field(default_factory=dict)  # by what became of them
    sessions_given_up: Mapping[str, int] = field(default_factory=dict)
    session_rows: Mapping[str, int] = field(default_factory=dict)  # that are no evidence, by why
    sessions_remembered: int = 0
    tokens_left_out: int = 0  # by the ladder
    bytes: int = 0
    false_alarms_promised: float = 0.0  # in 30 days, at most, by the guarantee of all detectors together
    kept: KeeperSnapshot = field(default_factory=KeeperSnapshot)
    nameless: bool = False  # rows have come, and no request has named a session


class Rung(StrEnum):
    """How much of the work is done, from all of it to nothing. The only values of the label ``rung``."""

    FULL = "full"
    NO_SKETCHES = "no_sketches"
    TOKEN_STRIDE = "token_stride"  # noqa: S105 - a rung, not a secret
    FEWER_TAP_POINTS = "fewer_tap_points"
    LOWER_SAMPLING = "lower_sampling"
    OFF = "off"


class Transport(StrEnum):
    """How an engine's batches come. The only values of the label ``transport``."""

    RING = "ring"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What multiplies a tap point's steps of ``rows`` rows and more, and how long it took in the calibration."""

    tap_point: TapPoint
    rows: int
    kernel: str
    seconds: float


class ShardOutcome(StrEnum):
    """Who multiplied the rows of a tap point that is dealt to a shard."""

    SHARD = "shard"
    SHARD_LATE = "shard_late"  # its readings are not used
    WORKER = "worker"  # the shard was lost, behind or full


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """What one process of the sidecar costs the machine."""

    role: str  # "control" or "worker"
    cpu_s: float
    resident_bytes: float
    open_fds: float


class ShardState(StrEnum):
    """How a shard does that was started."""

    SERVING = "serving"
    LOST = "lost"  # dead, or given up; it is not started again


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """The shards, and what came of the tensors whose tap points are dealt to them."""

    states: Mapping[str, int] = field(default_factory=dict)  # shards, by ShardState
    tensors: Mapping[str, int] = field(default_factory=dict)  # by ShardOutcome


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """How the sidecar runs now, and what that has cost."""

    rung: Rung = Rung.FULL
    rung_reason: str = ""
    rung_for_s: float = 0.0
    rung_changes: Mapping[str, int] = field(default_factory=dict)  # times a rung was entered, by Rung
    mode: str = "raw"
    request_fraction: float = 0.0  # asked of the taps
    verdicts: Mapping[str, int] = field(default_factory=dict)  # requests judged for a caller that waits, by Action
    verdicts_late: int = 0  # requests answered by the policy because nothing was read in time
    queue_age: Histogram | None = None  # seconds between a batch being sent and its turn
    kernels: tuple[KernelChoice, ...] = ()
    streams: tuple[tuple[str, Transport], ...] = ()  # (engine id, how its batches come); ids never become labels
    shards: ShardSnapshot = field(default_factory=ShardSnapshot)
    projections_checked: int = 0  # rows whose projection by a tap was computed again from the raw row
    projections_wrong: int = 0  # of those, rows whose readings were not the tap's
    age_s: float = 0.0  # how old these counts are: the worker was busy or frozen since
    worker: str = "process"
    ledger: str = "memory"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is exported, at one moment. All counts are since the start of the process."""

    uptime_s: float
    step_batches: LedgerCounts
    rows: LedgerCounts
    plan_generation: int
    model: ModelIdentity | None
    signals: tuple[SignalSnapshot, ...]
    coverage: tuple[CoverageSnapshot, ...]
    blind: bool  # any tap point blind, or an engine that proves nothing
    unseen: Mapping[UnseenReason, int]
    artifacts: tuple[ArtifactSnapshot, ...]
    stages: Mapping[str, Histogram]  # seconds, by Stage
    budget_s: float
    budget_use: Histogram  # share of the budget used by a step: 1.0 is all of it
    engines: int
    engines_refused: int
    taps: TapLedgerCounts
    requests_tracked: int
    requests_evicted: int
    dedup_evicted: int
    traceparents_ignored: int
    run: RunSnapshot = field(default_factory=RunSnapshot)
    circuits: CircuitsSnapshot = field(default_factory=CircuitsSnapshot)
    # Below: counted by others than the pipeline, and filled in by the service.
    reloads: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # by ReloadOutcome
    log_lines_suppressed: int = 0
    spans_queue_dropped: int = 0
    spans_exported: int = 0  # accepted by the collector
    spans_failed: int = 0  # refused by it, or it could not be reached
    events_exported: int = 0  # gen_ai.evaluation.result events, counted like spans
    events_failed: int = 0
    processes: tuple[ProcessSnapshot, ...] = ()
    http_requests: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # by HttpOutcome


@dataclass(frozen=True, slots=True)
class SignalScore:
    """One signal's final score for one request."""

    name: str
    version: str
    evidence: Evidence
    score: float  # calibrated probability
    threshold: float
    flagged: bool
    readings: int  # tokens that went into the score


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request whose scores are final: what becomes its span."""

    request_id: str
    engine_id: str
    traceparent: TraceParent | None
    started_ns: int
    ended_ns: int
    tokens_seen: int
    tokens_unseen: int
    scores: tuple[SignalScore, ...]
    ended_by: str  # "finished", "idle", "evicted", "model_changed", "shutdown"
    route: str = ""
    canary: bool = False
    adapter: str = ""
    media: tuple[tuple[Medium, int], ...] = ()  # of the tokens seen, those that stand for images and the like

    @property
    def flagged(self) -> bool:
        return any(score.flagged for score in self.scores)
