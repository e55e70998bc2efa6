from protos.stethoscope.v1 import ingest_pb2 as _ingest_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("engine_id", "model", "traffic")
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    engine_id: str
    model: ModelIdentity
    traffic: _ingest_pb2.TrafficReport
    def __init__(self, engine_id: _Optional[str] = ..., model: _Optional[_Union[ModelIdentity, _Mapping[str, object]]] = ..., traffic: _Optional[_Union[_ingest_pb2.TrafficReport, _Mapping[str, object]]] = ...) -> None: ...

class ModelIdentity(_message.Message):
    __slots__ = ("name", "architecture", "layers", "width", "weights_digest", "tokenizer_digest", "dtype", "quantisation", "engine", "engine_version", "encoder_layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTISATION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    layers: int
    width: int
    weights_digest: str
    tokenizer_digest: str
    dtype: str
    quantisation: str
    engine: str
    engine_version: str
    encoder_layers: int
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., layers: _Optional[int] = ..., width: _Optional[int] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., dtype: _Optional[str] = ..., quantisation: _Optional[str] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., encoder_layers: _Optional[int] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("control", "artifacts")
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    control: _ingest_pb2.Control
    artifacts: _containers.RepeatedCompositeFieldContainer[ArtifactState]
    def __init__(self, control: _Optional[_Union[_ingest_pb2.Control, _Mapping[str, object]]] = ..., artifacts: _Optional[_Iterable[_Union[ArtifactState, _Mapping[str, object]]]] = ...) -> None: ...

class ArtifactState(_message.Message):
    __slots__ = ("name", "version", "evidence", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    evidence: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., evidence: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchPlanRequest(_message.Message):
    __slots__ = ("known_generation",)
    KNOWN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    known_generation: int
    def __init__(self, known_generation: _Optional[int] = ...) -> None: ...

class FetchPlanResponse(_message.Message):
    __slots__ = ("generation", "tensors")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    tensors: _containers.RepeatedCompositeFieldContainer[PlanTensor]
    def __init__(self, generation: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[PlanTensor, _Mapping[str, object]]]] = ...) -> None: ...

class PlanTensor(_message.Message):
    __slots__ = ("tap_point", "width", "columns", "directions")
    TAP_POINT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    tap_point: _ingest_pb2.TapPoint
    width: int
    columns: _containers.RepeatedScalarFieldContainer[str]
    directions: bytes
    def __init__(self, tap_point: _Optional[_Union[_ingest_pb2.TapPoint, _Mapping[str, object]]] = ..., width: _Optional[int] = ..., columns: _Optional[_Iterable[str]] = ..., directions: _Optional[bytes] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "uptime_s", "plan_generation", "step_batches", "rows", "coverage", "signals", "artifacts", "engines", "taps", "spans_exported", "model", "run", "streams", "circuits", "canaries")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    PLAN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_BATCHES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    TAPS_FIELD_NUMBER: _ClassVar[int]
    SPANS_EXPORTED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    CANARIES_FIELD_NUMBER: _ClassVar[int]
    version: str
    uptime_s: float
    plan_generation: int
    step_batches: LedgerState
    rows: LedgerState
    coverage: _containers.RepeatedCompositeFieldContainer[CoverageState]
    signals: _containers.RepeatedCompositeFieldContainer[SignalState]
    artifacts: _containers.RepeatedCompositeFieldContainer[ArtifactState]
    engines: int
    taps: _ingest_pb2.TapLedger
    spans_exported: int
    model: ModelIdentity
    run: RunState
    streams: _containers.RepeatedCompositeFieldContainer[EngineState]
    circuits: _containers.RepeatedCompositeFieldContainer[CircuitState]
    canaries: CanaryState
    def __init__(self, version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., plan_generation: _Optional[int] = ..., step_batches: _Optional[_Union[LedgerState, _Mapping[str, object]]] = ..., rows: _Optional[_Union[LedgerState, _Mapping[str, object]]] = ..., coverage: _Optional[_Iterable[_Union[CoverageState, _Mapping[str, object]]]] = ..., signals: _Optional[_Iterable[_Union[SignalState, _Mapping[str, object]]]] = ..., artifacts: _Optional[_Iterable[_Union[ArtifactState, _Mapping[str, object]]]] = ..., engines: _Optional[int] = ..., taps: _Optional[_Union[_ingest_pb2.TapLedger, _Mapping[str, object]]] = ..., spans_exported: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping[str, object]]] = ..., run: _Optional[_Union[RunState, _Mapping[str, object]]] = ..., streams: _Optional[_Iterable[_Union[EngineState, _Mapping[str, object]]]] = ..., circuits: _Optional[_Iterable[_Union[CircuitState, _Mapping[str, object]]]] = ..., canaries: _Optional[_Union[CanaryState, _Mapping[str, object]]] = ...) -> None: ...

class CircuitState(_message.Message):
    __slots__ = ("name", "version", "state", "reason", "slices", "canary_distance", "canary_moved", "alarms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    CANARY_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    CANARY_MOVED_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    state: str
    reason: str
    slices: _containers.RepeatedCompositeFieldContainer[CircuitSliceState]
    canary_distance: float
    canary_moved: bool
    alarms: _containers.RepeatedCompositeFieldContainer[CircuitAlarm]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., slices: _Optional[_Iterable[_Union[CircuitSliceState, _Mapping[str, object]]]] = ..., canary_distance: _Optional[float] = ..., canary_moved: _Optional[bool] = ..., alarms: _Optional[_Iterable[_Union[CircuitAlarm, _Mapping[str, object]]]] = ...) -> None: ...

class CircuitSliceState(_message.Message):
    __slots__ = ("slice", "tokens", "engaged", "sessions", "engaged_sessions", "log_evidence", "log_threshold")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    LOG_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    slice: str
    tokens: int
    engaged: int
    sessions: int
    engaged_sessions: float
    log_evidence: float
    log_threshold: float
    def __init__(self, slice: _Optional[str] = ..., tokens: _Optional[int] = ..., engaged: _Optional[int] = ..., sessions: _Optional[int] = ..., engaged_sessions: _Optional[float] = ..., log_evidence: _Optional[float] = ..., log_threshold: _Optional[float] = ...) -> None: ...

class CircuitAlarm(_message.Message):
    __slots__ = ("slice", "at_s", "cause", "leans", "severity", "record", "open")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    LEANS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    slice: str
    at_s: int
    cause: str
    leans: str
    severity: str
    record: str
    open: bool
    def __init__(self, slice: _Optional[str] = ..., at_s: _Optional[int] = ..., cause: _Optional[str] = ..., leans: _Optional[str] = ..., severity: _Optional[str] = ..., record: _Optional[str] = ..., open: _Optional[bool] = ...) -> None: ...

class CanaryState(_message.Message):
    __slots__ = ("whole", "not_whole", "recorded", "age_s", "moved", "deploying")
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NOT_WHOLE_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    DEPLOYING_FIELD_NUMBER: _ClassVar[int]
    whole: int
    not_whole: int
    recorded: bool
    age_s: float
    moved: _containers.RepeatedScalarFieldContainer[str]
    deploying: bool
    def __init__(self, whole: _Optional[int] = ..., not_whole: _Optional[int] = ..., recorded: _Optional[bool] = ..., age_s: _Optional[float] = ..., moved: _Optional[_Iterable[str]] = ..., deploying: _Optional[bool] = ...) -> None: ...

class RunState(_message.Message):
    __slots__ = ("rung", "rung_reason", "rung_for_s", "mode", "request_fraction", "budget_s", "budget_use_p99", "worker", "ledger", "kernels", "counts_age_s")
    RUNG_FIELD_NUMBER: _ClassVar[int]
    RUNG_REASON_FIELD_NUMBER: _ClassVar[int]
    RUNG_FOR_S_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FRACTION_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    BUDGET_USE_P99_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_AGE_S_FIELD_NUMBER: _ClassVar[int]
    rung: str
    rung_reason: str
    rung_for_s: float
    mode: str
    request_fraction: float
    budget_s: float
    budget_use_p99: float
    worker: str
    ledger: str
    kernels: _containers.RepeatedCompositeFieldContainer[KernelState]
    counts_age_s: float
    def __init__(self, rung: _Optional[str] = ..., rung_reason: _Optional[str] = ..., rung_for_s: _Optional[float] = ..., mode: _Optional[str] = ..., request_fraction: _Optional[float] = ..., budget_s: _Optional[float] = ..., budget_use_p99: _Optional[float] = ..., worker: _Optional[str] = ..., ledger: _Optional[str] = ..., kernels: _Optional[_Iterable[_Union[KernelState, _Mapping[str, object]]]] = ..., counts_age_s: _Optional[float] = ...) -> None: ...

class KernelState(_message.Message):
    __slots__ = ("tap_point", "rows", "kernel", "microseconds")
    TAP_POINT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    tap_point: str
    rows: int
    kernel: str
    microseconds: float
    def __init__(self, tap_point: _Optional[str] = ..., rows: _Optional[int] = ..., kernel: _Optional[str] = ..., microseconds: _Optional[float] = ...) -> None: ...

class EngineState(_message.Message):
    __slots__ = ("engine_id", "transport")
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    engine_id: str
    transport: str
    def __init__(self, engine_id: _Optional[str] = ..., transport: _Optional[str] = ...) -> None: ...

class LedgerState(_message.Message):
    __slots__ = ("received", "scored", "dropped", "rejected", "in_flight")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    received: int
    scored: int
    dropped: int
    rejected: int
    in_flight: int
    def __init__(self, received: _Optional[int] = ..., scored: _Optional[int] = ..., dropped: _Optional[int] = ..., rejected: _Optional[int] = ..., in_flight: _Optional[int] = ...) -> None: ...

class CoverageState(_message.Message):
    __slots__ = ("tap_point", "expected", "seen", "blind", "reason")
    TAP_POINT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    BLIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    tap_point: str
    expected: int
    seen: int
    blind: bool
    reason: str
    def __init__(self, tap_point: _Optional[str] = ..., expected: _Optional[int] = ..., seen: _Optional[int] = ..., blind: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SignalState(_message.Message):
    __slots__ = ("name", "readings", "mean", "detections", "evidence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    readings: int
    mean: float
    detections: int
    evidence: str
    def __init__(self, name: _Optional[str] = ..., readings: _Optional[int] = ..., mean: _Optional[float] = ..., detections: _Optional[int] = ..., evidence: _Optional[str] = ...) -> None: ...
