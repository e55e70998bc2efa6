"""Through a collector that is not ours: rotel receives, and passes on what it understood."""

from __future__ import annotations

import pytest

from sidecar.config import Traces
from sidecar.export.traces import TraceCounts, Tracing
from tests.export.examples import SPAN_ID, TRACE_ID, UNSAMPLED, ended, score
from tests.export.receivers import Receiver, Rotel, attributes

pytestmark = pytest.mark.process


def test_spans_and_events_pass_a_real_collector_unchanged(
    rotel: Rotel, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", rotel.endpoint)
    tracing = Tracing(Traces(enabled=True, root_fraction=1.0), version="0.1.0")
    tracing.start()
    tracing.offer(ended("sampled", scores=(score("sentiment", 0.3), score("spam", 0.2))))
    tracing.offer(ended("flagged", traceparent=UNSAMPLED, scores=(score("sentiment", 0.95),)))
    tracing.offer(ended("quiet", traceparent=UNSAMPLED))
    tracing.offer(ended("root", traceparent=None))
    tracing.stop()
    assert tracing.counts() == TraceCounts(chosen=3, exported=3, events_exported=4)

    spans = {attributes(span)["gen_ai.request.id"]: span for span in receiver.spans(at_least=3)}
    assert spans.keys() == {"sampled", "flagged", "root"}
    for name in ("sampled", "flagged"):
        assert (spans[name].trace_id.hex(), spans[name].parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert spans["root"].trace_id.hex() != TRACE_ID
    assert spans["root"].parent_span_id == b""
    assert spans["sampled"].name == "stethoscope.request"
    assert spans["sampled"].end_time_unix_nano - spans["sampled"].start_time_unix_nano == 1_500_000_000
    assert attributes(spans["flagged"])["stethoscope.flagged"] is True
    assert attributes(spans["flagged"])["stethoscope.probe.sentiment.score"] == 0.95
    assert attributes(spans["flagged"])["stethoscope.probe.sentiment.evidence"] == "decodable"

    events = receiver.events(at_least=4)
    assert {event.event_name for event in events} == {"gen_ai.evaluation.result"}
    of_sampled = [event for event in events if event.span_id == spans["sampled"].span_id]
    assert [attributes(event)["gen_ai.evaluation.name"] for event in of_sampled] == ["sentiment", "spam"]
    of_flagged = next(event for event in events if event.span_id == spans["flagged"].span_id)
    assert of_flagged.trace_id.hex() == TRACE_ID
    assert attributes(of_flagged)["gen_ai.evaluation.score.label"] == "flagged"
    assert attributes(of_flagged)["gen_ai.evaluation.score.value"] == 0.95
    assert receiver.resource()["service.name"] == "stethoscope"
