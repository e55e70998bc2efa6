from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Medium(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEDIUM_UNSPECIFIED: _ClassVar[Medium]
    MEDIUM_IMAGE: _ClassVar[Medium]
    MEDIUM_VIDEO: _ClassVar[Medium]
    MEDIUM_AUDIO: _ClassVar[Medium]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_PREFILL: _ClassVar[Phase]
    PHASE_DECODE: _ClassVar[Phase]
    PHASE_ENCODER: _ClassVar[Phase]
    PHASE_TIMESTEP: _ClassVar[Phase]

class UnseenReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSEEN_REASON_UNSPECIFIED: _ClassVar[UnseenReason]
    UNSEEN_REASON_PREFIX_CACHE: _ClassVar[UnseenReason]
    UNSEEN_REASON_SAMPLING: _ClassVar[UnseenReason]
    UNSEEN_REASON_TAP_DROPPED: _ClassVar[UnseenReason]
    UNSEEN_REASON_GRAPH_REPLAY: _ClassVar[UnseenReason]
    UNSEEN_REASON_UNSUPPORTED: _ClassVar[UnseenReason]

class Stack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STACK_UNSPECIFIED: _ClassVar[Stack]
    STACK_ENCODER: _ClassVar[Stack]

class Site(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SITE_UNSPECIFIED: _ClassVar[Site]
    SITE_RESID_POST: _ClassVar[Site]
    SITE_ATTN_HEADS: _ClassVar[Site]
    SITE_MLP_OUT: _ClassVar[Site]

class ElementType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ELEMENT_TYPE_UNSPECIFIED: _ClassVar[ElementType]
    ELEMENT_TYPE_F32: _ClassVar[ElementType]
    ELEMENT_TYPE_F16: _ClassVar[ElementType]
    ELEMENT_TYPE_BF16: _ClassVar[ElementType]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_SCORED: _ClassVar[Outcome]
    OUTCOME_DROPPED: _ClassVar[Outcome]
    OUTCOME_REJECTED: _ClassVar[Outcome]

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_ALLOW: _ClassVar[Action]
    ACTION_FLAG: _ClassVar[Action]
    ACTION_BLOCK: _ClassVar[Action]
    ACTION_ESCALATE: _ClassVar[Action]

class CaptureMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPTURE_MODE_UNSPECIFIED: _ClassVar[CaptureMode]
    CAPTURE_MODE_RAW: _ClassVar[CaptureMode]
    CAPTURE_MODE_PROJECTED: _ClassVar[CaptureMode]
MEDIUM_UNSPECIFIED: Medium
MEDIUM_IMAGE: Medium
MEDIUM_VIDEO: Medium
MEDIUM_AUDIO: Medium
PHASE_UNSPECIFIED: Phase
PHASE_PREFILL: Phase
PHASE_DECODE: Phase
PHASE_ENCODER: Phase
PHASE_TIMESTEP: Phase
UNSEEN_REASON_UNSPECIFIED: UnseenReason
UNSEEN_REASON_PREFIX_CACHE: UnseenReason
UNSEEN_REASON_SAMPLING: UnseenReason
UNSEEN_REASON_TAP_DROPPED: UnseenReason
UNSEEN_REASON_GRAPH_REPLAY: UnseenReason
UNSEEN_REASON_UNSUPPORTED: UnseenReason
STACK_UNSPECIFIED: Stack
STACK_ENCODER: Stack
SITE_UNSPECIFIED: Site
SITE_RESID_POST: Site
SITE_ATTN_HEADS: Site
SITE_MLP_OUT: Site
ELEMENT_TYPE_UNSPECIFIED: ElementType
ELEMENT_TYPE_F32: ElementType
ELEMENT_TYPE_F16: ElementType
ELEMENT_TYPE_BF16: ElementType
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_SCORED: Outcome
OUTCOME_DROPPED: Outcome
OUTCOME_REJECTED: Outcome
ACTION_UNSPECIFIED: Action
ACTION_ALLOW: Action
ACTION_FLAG: Action
ACTION_BLOCK: Action
ACTION_ESCALATE: Action
CAPTURE_MODE_UNSPECIFIED: CaptureMode
CAPTURE_MODE_RAW: CaptureMode
CAPTURE_MODE_PROJECTED: CaptureMode

class StreamRequest(_message.Message):
    __slots__ = ("step_batch", "traffic", "goodbye", "finished")
    STEP_BATCH_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    step_batch: StepBatch
    traffic: TrafficReport
    goodbye: Goodbye
    finished: RequestsFinished
    def __init__(self, step_batch: _Optional[_Union[StepBatch, _Mapping[str, object]]] = ..., traffic: _Optional[_Union[TrafficReport, _Mapping[str, object]]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping[str, object]]] = ..., finished: _Optional[_Union[RequestsFinished, _Mapping[str, object]]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("result", "control")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    result: StepResult
    control: Control
    def __init__(self, result: _Optional[_Union[StepResult, _Mapping[str, object]]] = ..., control: _Optional[_Union[Control, _Mapping[str, object]]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("step_batch", "traffic")
    STEP_BATCH_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    step_batch: StepBatch
    traffic: TrafficReport
    def __init__(self, step_batch: _Optional[_Union[StepBatch, _Mapping[str, object]]] = ..., traffic: _Optional[_Union[TrafficReport, _Mapping[str, object]]] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: StepResult
    def __init__(self, result: _Optional[_Union[StepResult, _Mapping[str, object]]] = ...) -> None: ...

class StepBatch(_message.Message):
    __slots__ = ("batch_id", "engine_id", "taken_ns", "plan_generation", "step", "segments", "tensors", "finished_request_ids", "verdict_within_us")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    TAKEN_NS_FIELD_NUMBER: _ClassVar[int]
    PLAN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_WITHIN_US_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    engine_id: str
    taken_ns: int
    plan_generation: int
    step: int
    segments: Segments
    tensors: _containers.RepeatedCompositeFieldContainer[TapTensor]
    finished_request_ids: _containers.RepeatedScalarFieldContainer[str]
    verdict_within_us: int
    def __init__(self, batch_id: _Optional[str] = ..., engine_id: _Optional[str] = ..., taken_ns: _Optional[int] = ..., plan_generation: _Optional[int] = ..., step: _Optional[int] = ..., segments: _Optional[_Union[Segments, _Mapping[str, object]]] = ..., tensors: _Optional[_Iterable[_Union[TapTensor, _Mapping[str, object]]]] = ..., finished_request_ids: _Optional[_Iterable[str]] = ..., verdict_within_us: _Optional[int] = ...) -> None: ...

class Segments(_message.Message):
    __slots__ = ("request_ids", "rows", "phases", "positions", "prompt_tokens", "traceparents", "tracestates", "session_id_hashes", "tenants", "routes", "languages", "canaries", "unseen", "adapters", "media")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENTS_FIELD_NUMBER: _ClassVar[int]
    TRACESTATES_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_HASHES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    CANARIES_FIELD_NUMBER: _ClassVar[int]
    UNSEEN_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedScalarFieldContainer[int]
    phases: _containers.RepeatedScalarFieldContainer[Phase]
    positions: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    traceparents: _containers.RepeatedScalarFieldContainer[str]
    tracestates: _containers.RepeatedScalarFieldContainer[str]
    session_id_hashes: _containers.RepeatedScalarFieldContainer[str]
    tenants: _containers.RepeatedScalarFieldContainer[str]
    routes: _containers.RepeatedScalarFieldContainer[str]
    languages: _containers.RepeatedScalarFieldContainer[str]
    canaries: _containers.RepeatedScalarFieldContainer[bool]
    unseen: _containers.RepeatedCompositeFieldContainer[SegmentUnseen]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    media: _containers.RepeatedCompositeFieldContainer[MediaSpan]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[int]] = ..., phases: _Optional[_Iterable[_Union[Phase, str]]] = ..., positions: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[_Iterable[int]] = ..., traceparents: _Optional[_Iterable[str]] = ..., tracestates: _Optional[_Iterable[str]] = ..., session_id_hashes: _Optional[_Iterable[str]] = ..., tenants: _Optional[_Iterable[str]] = ..., routes: _Optional[_Iterable[str]] = ..., languages: _Optional[_Iterable[str]] = ..., canaries: _Optional[_Iterable[bool]] = ..., unseen: _Optional[_Iterable[_Union[SegmentUnseen, _Mapping[str, object]]]] = ..., adapters: _Optional[_Iterable[str]] = ..., media: _Optional[_Iterable[_Union[MediaSpan, _Mapping[str, object]]]] = ...) -> None: ...

class MediaSpan(_message.Message):
    __slots__ = ("segment", "medium", "position", "tokens")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    segment: int
    medium: Medium
    position: int
    tokens: int
    def __init__(self, segment: _Optional[int] = ..., medium: _Optional[_Union[Medium, str]] = ..., position: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class SegmentUnseen(_message.Message):
    __slots__ = ("segment", "reason", "tokens")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    segment: int
    reason: UnseenReason
    tokens: int
    def __init__(self, segment: _Optional[int] = ..., reason: _Optional[_Union[UnseenReason, str]] = ..., tokens: _Optional[int] = ...) -> None: ...

class Unseen(_message.Message):
    __slots__ = ("reason", "tokens")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    reason: UnseenReason
    tokens: int
    def __init__(self, reason: _Optional[_Union[UnseenReason, str]] = ..., tokens: _Optional[int] = ...) -> None: ...

class TapTensor(_message.Message):
    __slots__ = ("tap_point", "dtype", "rows", "columns", "raw", "projected", "raw_slot", "projected_slot", "sample")
    TAP_POINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_FIELD_NUMBER: _ClassVar[int]
    RAW_SLOT_FIELD_NUMBER: _ClassVar[int]
    PROJECTED_SLOT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    tap_point: TapPoint
    dtype: ElementType
    rows: int
    columns: int
    raw: bytes
    projected: bytes
    raw_slot: SlotSpan
    projected_slot: SlotSpan
    sample: RawSample
    def __init__(self, tap_point: _Optional[_Union[TapPoint, _Mapping[str, object]]] = ..., dtype: _Optional[_Union[ElementType, str]] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., raw: _Optional[bytes] = ..., projected: _Optional[bytes] = ..., raw_slot: _Optional[_Union[SlotSpan, _Mapping[str, object]]] = ..., projected_slot: _Optional[_Union[SlotSpan, _Mapping[str, object]]] = ..., sample: _Optional[_Union[RawSample, _Mapping[str, object]]] = ...) -> None: ...

class SlotSpan(_message.Message):
    __slots__ = ("offset", "size")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size: int
    def __init__(self, offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class RawSample(_message.Message):
    __slots__ = ("rows", "dtype", "columns", "raw", "raw_slot")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    RAW_SLOT_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    dtype: ElementType
    columns: int
    raw: bytes
    raw_slot: SlotSpan
    def __init__(self, rows: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[ElementType, str]] = ..., columns: _Optional[int] = ..., raw: _Optional[bytes] = ..., raw_slot: _Optional[_Union[SlotSpan, _Mapping[str, object]]] = ...) -> None: ...

class TapPoint(_message.Message):
    __slots__ = ("layer", "site", "stack")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    layer: int
    site: Site
    stack: Stack
    def __init__(self, layer: _Optional[int] = ..., site: _Optional[_Union[Site, str]] = ..., stack: _Optional[_Union[Stack, str]] = ...) -> None: ...

class TrafficReport(_message.Message):
    __slots__ = ("engine_id", "step", "tokens_computed", "unseen", "requests", "tap", "encoder_tokens_computed", "encoder_tokens_left_out")
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    UNSEEN_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TAP_FIELD_NUMBER: _ClassVar[int]
    ENCODER_TOKENS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    ENCODER_TOKENS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    engine_id: str
    step: int
    tokens_computed: int
    unseen: _containers.RepeatedCompositeFieldContainer[Unseen]
    requests: int
    tap: TapLedger
    encoder_tokens_computed: int
    encoder_tokens_left_out: int
    def __init__(self, engine_id: _Optional[str] = ..., step: _Optional[int] = ..., tokens_computed: _Optional[int] = ..., unseen: _Optional[_Iterable[_Union[Unseen, _Mapping[str, object]]]] = ..., requests: _Optional[int] = ..., tap: _Optional[_Union[TapLedger, _Mapping[str, object]]] = ..., encoder_tokens_computed: _Optional[int] = ..., encoder_tokens_left_out: _Optional[int] = ...) -> None: ...

class TapLedger(_message.Message):
    __slots__ = ("sent", "ok", "refused", "unknown", "dropped")
    SENT_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    sent: int
    ok: int
    refused: int
    unknown: int
    dropped: int
    def __init__(self, sent: _Optional[int] = ..., ok: _Optional[int] = ..., refused: _Optional[int] = ..., unknown: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class RequestsFinished(_message.Message):
    __slots__ = ("engine_id", "request_ids")
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    engine_id: str
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, engine_id: _Optional[str] = ..., request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("engine_id",)
    ENGINE_ID_FIELD_NUMBER: _ClassVar[int]
    engine_id: str
    def __init__(self, engine_id: _Optional[str] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("batch_id", "outcome", "reason", "field", "plan_generation", "verdicts", "late")
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PLAN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    batch_id: str
    outcome: Outcome
    reason: str
    field: str
    plan_generation: int
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    late: bool
    def __init__(self, batch_id: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., reason: _Optional[str] = ..., field: _Optional[str] = ..., plan_generation: _Optional[int] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping[str, object]]]] = ..., late: _Optional[bool] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("request_id", "action", "signals", "read", "skipped", "late")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    action: Action
    signals: _containers.RepeatedCompositeFieldContainer[SignalReading]
    read: _containers.RepeatedScalarFieldContainer[str]
    skipped: _containers.RepeatedScalarFieldContainer[str]
    late: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., action: _Optional[_Union[Action, str]] = ..., signals: _Optional[_Iterable[_Union[SignalReading, _Mapping[str, object]]]] = ..., read: _Optional[_Iterable[str]] = ..., skipped: _Optional[_Iterable[str]] = ..., late: _Optional[_Iterable[str]] = ...) -> None: ...

class SignalReading(_message.Message):
    __slots__ = ("name", "score", "threshold")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    name: str
    score: float
    threshold: float
    def __init__(self, name: _Optional[str] = ..., score: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("plan_generation", "sampling", "tap_points", "mode", "sampled_steps", "ring_ticket", "at_deadline")
    PLAN_GENERATION_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TAP_POINTS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_STEPS_FIELD_NUMBER: _ClassVar[int]
    RING_TICKET_FIELD_NUMBER: _ClassVar[int]
    AT_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    plan_generation: int
    sampling: SamplingPolicy
    tap_points: _containers.RepeatedCompositeFieldContainer[TapPoint]
    mode: CaptureMode
    sampled_steps: float
    ring_ticket: bytes
    at_deadline: Action
    def __init__(self, plan_generation: _Optional[int] = ..., sampling: _Optional[_Union[SamplingPolicy, _Mapping[str, object]]] = ..., tap_points: _Optional[_Iterable[_Union[TapPoint, _Mapping[str, object]]]] = ..., mode: _Optional[_Union[CaptureMode, str]] = ..., sampled_steps: _Optional[float] = ..., ring_ticket: _Optional[bytes] = ..., at_deadline: _Optional[_Union[Action, str]] = ...) -> None: ...

class SamplingPolicy(_message.Message):
    __slots__ = ("request_fraction", "token_stride", "first_tokens", "last_tokens")
    REQUEST_FRACTION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRIDE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_fraction: float
    token_stride: int
    first_tokens: int
    last_tokens: int
    def __init__(self, request_fraction: _Optional[float] = ..., token_stride: _Optional[int] = ..., first_tokens: _Optional[int] = ..., last_tokens: _Optional[int] = ...) -> None: ...
