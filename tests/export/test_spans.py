from __future__ import annotations

import math
from dataclasses import replace

import pytest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import StatusCode

from sidecar.export import semconv
from sidecar.export.spans import Chosen, Recorder, resource_of
from sidecar.snapshot import EndedRequest
from sidecar.types import Evidence, Medium, TraceParent
from tests.export.examples import SAMPLED, SPAN_ID, TRACE_ID, UNSAMPLED, ended, score

ROOT = 0x1234567890ABCDEF1234567890ABCDEF


def record(request: EndedRequest, root: int = 0) -> tuple[ReadableSpan, tuple[ReadableLogRecord, ...]]:
    recorded = Recorder("0.1.0").record([Chosen(request, root)])
    assert len(recorded.spans) == 1
    return recorded.spans[0], recorded.events


def facts(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_the_span_is_a_child_of_the_requests_own_trace() -> None:
    span, _ = record(ended())
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent is not None
    assert (f"{span.parent.span_id:016x}", span.parent.is_remote) == (SPAN_ID, True)
    assert span.context.span_id not in (0, int(SPAN_ID, 16))
    assert span.context.trace_flags.sampled


def test_a_flagged_request_of_an_unsampled_trace_makes_a_sampled_span() -> None:
    span, _ = record(ended(traceparent=UNSAMPLED))
    assert span.parent is not None
    assert not span.parent.trace_flags.sampled
    assert span.context.trace_flags.sampled


def test_a_request_without_a_trace_makes_a_root_span_with_the_trace_id_that_was_drawn() -> None:
    span, _ = record(ended(traceparent=None), ROOT)
    assert (span.parent, span.context.trace_id) == (None, ROOT)


def test_a_request_between_others_keeps_its_own_trace() -> None:
    requests = [
        ended("a"),
        ended("b", traceparent=None),
        ended("c", traceparent=TraceParent("f" * 32, "1" * 16, sampled=True)),
    ]
    recorded = Recorder("0.1.0").record([Chosen(request, ROOT) for request in requests])
    traces = [f"{span.context.trace_id:032x}" for span in recorded.spans]
    assert traces == [TRACE_ID, f"{ROOT:032x}", "f" * 32]
    assert [facts(span)[semconv.GEN_AI_REQUEST_ID] for span in recorded.spans] == ["a", "b", "c"]
    assert [event.log_record.trace_id for event in recorded.events] == [s.context.trace_id for s in recorded.spans]
    assert Recorder("0.1.0").record([]).spans == ()


def test_a_batch_that_cannot_be_recorded_leaves_nothing_for_the_next() -> None:
    recorder = Recorder("0.1.0")
    with pytest.raises(TypeError):
        recorder.record([Chosen(ended("sound"), 0), Chosen(ended("broken", ended_ns="tomorrow"), 0)])
    recorded = recorder.record([Chosen(ended("next"), 0)])
    assert [facts(span)["gen_ai.request.id"] for span in recorded.spans] == ["next"]
    assert len(recorded.events) == 1


def test_the_span_lasts_as_long_as_the_request_and_never_less_than_nothing() -> None:
    request = ended()
    span, _ = record(request)
    assert (span.start_time, span.end_time) == (request.started_ns, request.ended_ns)
    back, _ = record(replace(request, ended_ns=request.started_ns - 5))
    assert back.end_time == request.started_ns


def test_the_span_carries_the_request_and_every_score_with_its_evidence() -> None:
    scores = (score("sentiment", 0.9), score("spam", 0.1))
    span, _ = record(ended(route="chat", adapter="sql", media=((Medium.IMAGE, 4),), scores=scores))
    assert facts(span) == {
        "gen_ai.request.id": "request-1",
        "stethoscope.engine.id": "engine-1",
        "stethoscope.route": "chat",
        "stethoscope.adapter": "sql",
        "stethoscope.tokens.seen": 40,
        "stethoscope.tokens.unseen": 8,
        "stethoscope.tokens.image": 4,
        "stethoscope.ended_by": "finished",
        "stethoscope.flagged": True,
        "stethoscope.probe.sentiment.score": 0.9,
        "stethoscope.probe.sentiment.threshold": 0.8,
        "stethoscope.probe.sentiment.flagged": True,
        "stethoscope.probe.sentiment.evidence": "decodable",
        "stethoscope.probe.sentiment.version": "1.0.0",
        "stethoscope.probe.spam.score": 0.1,
        "stethoscope.probe.spam.threshold": 0.8,
        "stethoscope.probe.spam.flagged": False,
        "stethoscope.probe.spam.evidence": "decodable",
        "stethoscope.probe.spam.version": "1.0.0",
    }


def test_every_signal_makes_an_evaluation_event_in_the_context_of_the_span() -> None:
    span, events = record(ended(scores=(score("spam", 0.1), score("sentiment", 0.9))))
    assert [event.log_record.event_name for event in events] == ["gen_ai.evaluation.result"] * 2
    assert {(e.log_record.trace_id, e.log_record.span_id) for e in events} == {
        (span.context.trace_id, span.context.span_id)
    }
    first = dict(events[0].log_record.attributes or {})
    assert first == {
        "gen_ai.evaluation.name": "sentiment",
        "gen_ai.evaluation.score.value": 0.9,
        "gen_ai.evaluation.score.label": "flagged",
        "gen_ai.evaluation.explanation": (
            "0.900 at the end, from 9 tokens; the threshold 0.800 was crossed; evidence: decodable"
        ),
        "gen_ai.request.id": "request-1",
        "stethoscope.probe.version": "1.0.0",
        "stethoscope.probe.evidence": "decodable",
        "stethoscope.probe.threshold": 0.8,
        "stethoscope.probe.readings": 9,
    }
    assert dict(events[1].log_record.attributes or {})["gen_ai.evaluation.score.label"] == "clear"
    assert [event.log_record.timestamp for event in events] == [span.end_time] * 2


@pytest.mark.parametrize("silent", [score("spam", 0.5, readings=0), score("spam", math.nan), score("spam", math.inf)])
def test_a_score_without_readings_or_that_is_no_number_is_not_told(silent: object) -> None:
    span, events = record(ended(scores=(silent, score("sentiment"))))
    assert not [name for name in facts(span) if ".spam." in name]
    assert [dict(e.log_record.attributes or {})["gen_ai.evaluation.name"] for e in events] == ["sentiment"]


@pytest.mark.parametrize(
    ("ended_by", "status"),
    [
        ("finished", StatusCode.UNSET),
        ("idle", StatusCode.UNSET),
        ("evicted", StatusCode.ERROR),
        ("shutdown", StatusCode.ERROR),
    ],
)
def test_a_request_whose_scores_cover_only_a_part_is_an_error_of_ours(ended_by: str, status: StatusCode) -> None:
    assert record(ended(ended_by=ended_by))[0].status.status_code is status


@pytest.mark.parametrize(("limit", "shown"), [("", 23), ("48", 7), ("1000", 61)])
def test_the_limit_on_attributes_cuts_whole_unflagged_signals_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch, limit: str, shown: int
) -> None:
    if limit:
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", limit)
    many = tuple(score(f"probe_{n:03}") for n in range(60))
    media = tuple((medium, 1) for medium in Medium)
    scores = (*many, score("zz_flagged", 0.99))
    span, events = record(ended(route="chat", adapter="sql", media=media, scores=scores))
    told = facts(span)
    assert told["stethoscope.probe.zz_flagged.score"] == 0.99
    assert told["gen_ai.request.id"] == "request-1"
    assert sum(name.endswith(".version") for name in told) == shown
    assert told.get("stethoscope.probes.left_out", 0) == 61 - shown
    assert (span.dropped_attributes, len(events)) == (0, 61)


def test_stale_evidence_travels_with_the_score() -> None:
    span, events = record(ended(scores=(replace(score(), evidence=Evidence.STALE),)))
    assert facts(span)["stethoscope.probe.sentiment.evidence"] == "stale"
    assert "evidence: stale" in str(dict(events[0].log_record.attributes or {})["gen_ai.evaluation.explanation"])


def test_the_service_is_stethoscope_unless_the_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource_of("0.1.0").attributes["service.name"] == "stethoscope"
    assert resource_of("0.1.0").attributes["service.version"] == "0.1.0"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attribute,service.version=9,k8s.pod.name=pod-1")
    assert resource_of("0.1.0").attributes["service.name"] == "by-attribute"
    assert resource_of("0.1.0").attributes["service.version"] == "9"
    assert resource_of("0.1.0").attributes["k8s.pod.name"] == "pod-1"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by-name")
    assert resource_of("0.1.0").attributes["service.name"] == "by-name"


def test_our_names_are_those_of_the_conventions_where_they_have_one() -> None:
    assert semconv.EVALUATION_NAME == gen_ai_attributes.GEN_AI_EVALUATION_NAME
    assert semconv.EVALUATION_SCORE_VALUE == gen_ai_attributes.GEN_AI_EVALUATION_SCORE_VALUE
    assert semconv.EVALUATION_SCORE_LABEL == gen_ai_attributes.GEN_AI_EVALUATION_SCORE_LABEL
    assert semconv.EVALUATION_EXPLANATION == gen_ai_attributes.GEN_AI_EVALUATION_EXPLANATION


def test_a_sampled_parent_is_named_sampled() -> None:
    span, _ = record(ended(traceparent=SAMPLED))
    assert span.parent is not None
    assert span.parent.trace_flags.sampled
