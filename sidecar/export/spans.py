"""One ended request becomes one span and one evaluation event per signal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.util.types import AttributeValue

from sidecar.export import semconv
from sidecar.snapshot import EndedRequest, SignalScore
from sidecar.types import Medium, TraceParent

_REQUEST_ATTRIBUTES = 9 + len(Medium)  # of the request itself
_PROBE_ATTRIBUTES = 5  # of each probe
UNFINISHED = frozenset({"evicted", "model_changed", "shutdown"})  # the scores cover only part of the request


@dataclass(frozen=True, slots=True)
class Chosen:
    """A request that gets a span. ``root_trace_id`` is its trace if it came without one."""

    ended: EndedRequest
    root_trace_id: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is exported of some requests."""

    spans: tuple[ReadableSpan, ...]
    events: tuple[ReadableLogRecord, ...]


class Recorder:
    """Makes spans and events with the SDK's own tracer and logger, so that its OTEL_* limits and resource apply.

    Sampling has been decided before; here everything is recorded. Belongs to one thread.
    """

    def __init__(self, version: str) -> None:
        resource = resource_of(version)
        self._ids = _GivenTraceId()
        self._limit = SpanLimits().max_span_attributes  # OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT, 128 if unset
        self._spans = _KeptSpans()
        self._events = _KeptEvents()
        tracers = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        tracers.add_span_processor(self._spans)
        loggers = LoggerProvider(resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(self._events)
        self._tracer = tracers.get_tracer(semconv.SCOPE, version)
        self._logger = loggers.get_logger(semconv.SCOPE, version)

    def record(self, batch: list[Chosen]) -> Recorded:
        """Make the spans and events of a batch, in its order: of the whole batch, or it raises and keeps nothing."""
        try:
            for chosen in batch:
                self._record(chosen)
            return Recorded(tuple(self._spans.kept), tuple(self._events.kept))
        finally:
            self._spans.kept.clear()
            self._events.kept.clear()

    def _record(self, chosen: Chosen) -> None:
        ended = chosen.ended
        self._ids.trace_id = chosen.root_trace_id
        span = self._tracer.start_span(
            semconv.SPAN_NAME,
            context=_parent_context(ended.traceparent),
            attributes=dict(_span_attributes(ended, self._limit)),
            start_time=ended.started_ns,
        )
        if ended.ended_by in UNFINISHED:
            span.set_status(trace.StatusCode.ERROR, f"scores are of a part of the request: {ended.ended_by}")
        context = trace.set_span_in_context(span, Context())
        end_ns = max(ended.started_ns, ended.ended_ns)
        for score in _readable(ended):
            self._logger.emit(
                timestamp=end_ns,
                context=context,
                severity_number=SeverityNumber.WARN if score.flagged else SeverityNumber.INFO,
                event_name=semconv.EVALUATION_EVENT,
                attributes=_event_attributes(ended, score),
            )
        span.end(end_ns)


def resource_of(version: str) -> Resource:
    """Say who sends: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, with "stethoscope" where they name no service."""
    told = Resource.create({})
    known = Resource({semconv.SERVICE_VERSION: version}).merge(told)
    if str(told.attributes.get(semconv.SERVICE_NAME, "")).startswith("unknown_service"):
        return known.merge(Resource({semconv.SERVICE_NAME: semconv.SCOPE}))
    return known


def _parent_context(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    remote = trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())


def _readable(ended: EndedRequest) -> list[SignalScore]:
    """Scores that rest on at least one reading, flagged ones first."""
    scores = (score for score in ended.scores if score.readings > 0 and math.isfinite(score.score))
    return sorted(scores, key=lambda score: (not score.flagged, score.name))


def _span_attributes(ended: EndedRequest, limit: int | None) -> Iterator[tuple[str, AttributeValue]]:
    """Name and value of what the span carries, at most ``limit`` of them: beyond it the SDK would drop the first ones."""
    scores = _readable(ended)
    shown = scores if limit is None else scores[: max(0, limit - _REQUEST_ATTRIBUTES) // _PROBE_ATTRIBUTES]
    yield semconv.GEN_AI_REQUEST_ID, ended.request_id
    yield semconv.ENGINE_ID, ended.engine_id
    if ended.route:
        yield semconv.ROUTE, ended.route
    if ended.adapter:
        yield semconv.ADAPTER, ended.adapter
    yield semconv.TOKENS_SEEN, ended.tokens_seen
    yield semconv.TOKENS_UNSEEN, ended.tokens_unseen
    for medium, tokens in ended.media:
        yield semconv.of_medium(medium), tokens
    yield semconv.ENDED_BY, ended.ended_by
    yield semconv.FLAGGED, ended.flagged
    if len(shown) < len(scores):
        yield semconv.PROBES_LEFT_OUT, len(scores) - len(shown)
    for score in shown:
        yield semconv.of_probe(score.name, "score"), score.score
        yield semconv.of_probe(score.name, "threshold"), score.threshold
        yield semconv.of_probe(score.name, "flagged"), score.flagged
        yield semconv.of_probe(score.name, "evidence"), score.evidence.value
        yield semconv.of_probe(score.name, "version"), score.version


def _event_attributes(ended: EndedRequest, score: SignalScore) -> dict[str, AttributeValue]:
    return {
        semconv.EVALUATION_NAME: score.name,
        semconv.EVALUATION_SCORE_VALUE: score.score,
        semconv.EVALUATION_SCORE_LABEL: semconv.LABEL_FLAGGED if score.flagged else semconv.LABEL_CLEAR,
        semconv.EVALUATION_EXPLANATION: (
            f"{score.score:.3f} at the end, from {score.readings} tokens; the threshold {score.threshold:.3f} was "
            f"{'crossed' if score.flagged else 'not crossed'}; evidence: {score.evidence.value}"
        ),
        semconv.GEN_AI_REQUEST_ID: ended.request_id,
        semconv.PROBE_VERSION: score.version,
        semconv.PROBE_EVIDENCE: score.evidence.value,
        semconv.PROBE_THRESHOLD: score.threshold,
        semconv.PROBE_READINGS: score.readings,
    }


class _GivenTraceId(RandomIdGenerator):
    """Random span ids; the trace id of a root span was drawn when its sampling was decided."""

    trace_id: int

    def generate_trace_id(self) -> int:
        return self.trace_id


class _KeptSpans(SpanProcessor):
    def __init__(self) -> None:
        self.kept: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.kept.append(span)


class _KeptEvents(LogRecordProcessor):
    def __init__(self) -> None:
        self.kept: list[ReadableLogRecord] = []

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self.kept.append(
            ReadableLogRecord(
                log_record=log_record.log_record,
                resource=log_record.resource or Resource.get_empty(),
                instrumentation_scope=log_record.instrumentation_scope,
                limits=log_record.limits,
            )
        )

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held."""
        return timeout_millis >= 0
