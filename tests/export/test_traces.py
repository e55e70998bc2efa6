from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
from opentelemetry.exporter.otlp.proto.grpc.exporter import OTLPExporterMixin
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sidecar.clock import ManualClock
from sidecar.config import Traces
from sidecar.errors import ConfigError
from sidecar.export.otlp import Exporters, Pace, connect, disabled, pace
from sidecar.export.traces import TraceCounts, Tracing, choose
from sidecar.log import Log
from sidecar.snapshot import EndedRequest
from tests.export.examples import SAMPLED, TRACE_ID, UNSAMPLED, ended, score
from tests.export.receivers import FrozenCollector, Receiver, attributes, free_port

DEADLINE_S = 10.0
FLAGGED = (score(value=0.95),)
Trace = Callable[..., Tracing]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def trace() -> Iterator[Trace]:
    """Started tracing; stopped at the end of the test."""
    with ExitStack() as stack:

        def start(
            connect_to: Callable[[], Exporters] = connect,
            *,
            queue: int = 2048,
            shutdown_s: float = 3.0,
            root_fraction: float = 0.1,
            enabled: bool = True,
            log: Log | None = None,
        ) -> Tracing:
            config = Traces(enabled=enabled, queue=queue, shutdown_s=shutdown_s, root_fraction=root_fraction)
            tracing = Tracing(config, version="0.1.0", connect=connect_to, log=log)
            stack.callback(tracing.stop)
            tracing.start()
            return tracing

        yield start


class HeldExporter(SpanExporter):
    """Keeps its caller inside export() until it is let go, as a collector does that has stopped reading."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.inside: Sequence[ReadableSpan] = ()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.inside = spans
        self.entered.set()
        self.let_go.wait(DEADLINE_S)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.let_go.set()


class RaisingExporter(InMemorySpanExporter):
    """Has a bug while ``broken``."""

    broken = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.broken:
            raise RuntimeError("secret text")
        return super().export(spans)


def quiet() -> Log:
    lines: list[str] = []
    return Log(ManualClock(), write=lines.append)


def wait_for(tracing: Tracing, condition: Callable[[TraceCounts], bool]) -> TraceCounts:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition(tracing.counts()):
        assert time.monotonic() < deadline_s, tracing.counts()
        threading.Event().wait(0.005)
    return tracing.counts()


def chosen(request: EndedRequest, fraction: float = 0.0, drawn: int = 0) -> bool:
    return choose(request, fraction, lambda: drawn) is not None


# which requests get a span


def test_a_sampled_trace_gets_a_span_and_an_unsampled_one_only_if_flagged() -> None:
    assert chosen(ended(traceparent=SAMPLED))
    assert not chosen(ended(traceparent=UNSAMPLED), fraction=1.0)
    assert chosen(ended(traceparent=UNSAMPLED, scores=FLAGGED))


def test_a_canary_gets_no_span_even_if_flagged() -> None:
    assert not chosen(ended(canary=True, scores=FLAGGED), fraction=1.0)
    assert not chosen(ended(canary=True, traceparent=None), fraction=1.0)


def test_a_request_without_a_trace_is_chosen_by_the_random_bits_of_its_own_trace_id() -> None:
    low, high = 0xFFFF << 56, (0xFFFF << 56) | ((1 << 56) - 1)  # the bits above the last 56 must not matter
    request = ended(traceparent=None)
    assert not chosen(request, 0.1, low)
    assert chosen(request, 0.1, high)
    assert chosen(request, 1.0, low)
    assert not chosen(request, 0.0, high)
    assert chosen(ended(traceparent=None, scores=FLAGGED), 0.0, low)
    assert chosen(request, 0.25, (3 << 54)) is True
    assert chosen(request, 0.25, (3 << 54) - 1) is False


def test_the_span_of_a_root_has_the_trace_id_that_decided() -> None:
    found = choose(ended(traceparent=None), 1.0, lambda: 42)
    assert found is not None
    assert found.root_trace_id == 42
    zero = choose(ended(traceparent=None), 1.0, lambda: 0)
    assert zero is not None
    assert zero.root_trace_id != 0


def test_the_share_of_roots_is_the_configured_one() -> None:
    request = ended(traceparent=None)
    share = sum(choose(request, 0.3, lambda: secrets.randbits(128)) is not None for _ in range(20_000)) / 20_000
    assert abs(share - 0.3) < 0.02  # six standard deviations


# what becomes of them


def test_spans_and_events_arrive_and_are_counted_when_the_collector_said_so(
    trace: Trace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=red")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-sidecar")
    tracing = trace()
    tracing.offer(ended("a"))
    tracing.offer(ended("b", traceparent=UNSAMPLED))
    tracing.offer(ended("c", traceparent=UNSAMPLED, scores=FLAGGED))
    spans, events = receiver.spans(at_least=2), receiver.events(at_least=2)
    assert [attributes(span)["gen_ai.request.id"] for span in spans] == ["a", "c"]
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    assert {(e.event_name, e.trace_id.hex()) for e in events} == {("gen_ai.evaluation.result", TRACE_ID)}
    assert wait_for(tracing, lambda c: c.events_exported == 2) == TraceCounts(2, 2, 0, 0, 2, 0)
    assert receiver.headers[0]["x-tenant"] == "red"
    assert receiver.resource()["service.name"] == "my-sidecar"


def test_a_collector_that_refuses_makes_failures_and_the_next_spans_have_their_own_chance(
    trace: Trace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    receiver.refuse = True
    tracing = trace()
    tracing.offer(ended("lost"))
    wait_for(tracing, lambda c: c.events_failed == 1)
    receiver.refuse = False
    tracing.offer(ended("kept"))
    assert wait_for(tracing, lambda c: c.events_exported == 1) == TraceCounts(2, 1, 1, 0, 1, 1)
    assert [attributes(span)["gen_ai.request.id"] for span in receiver.spans()] == ["kept"]


def test_an_exporter_that_raises_costs_its_batch_and_not_the_thread(trace: Trace) -> None:
    lines: list[str] = []
    exporter = RaisingExporter()
    tracing = trace(lambda: Exporters(exporter, None), log=Log(ManualClock(), write=lines.append))
    tracing.offer(ended("lost"))
    wait_for(tracing, lambda c: c.failed == 1)
    exporter.broken = False
    tracing.offer(ended("kept"))
    wait_for(tracing, lambda c: c.exported == 1)
    assert len(lines) == 1
    assert "export_failed" in lines[0]
    assert "secret text" not in lines[0]


def test_a_request_that_cannot_be_recorded_costs_its_batch_and_not_the_thread(trace: Trace) -> None:
    exporter = InMemorySpanExporter()
    tracing = trace(lambda: Exporters(exporter, None))
    tracing.offer(ended("broken", started_ns="yesterday"))
    wait_for(tracing, lambda c: c.failed == 1)
    tracing.offer(ended("sound"))
    wait_for(tracing, lambda c: c.exported == 1)
    assert len(exporter.get_finished_spans()) == 1


def test_the_events_can_be_turned_off_and_the_span_still_carries_the_scores(
    trace: Trace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    tracing = trace()
    tracing.offer(ended())
    assert attributes(receiver.spans(at_least=1)[0])["stethoscope.probe.sentiment.score"] == 0.3
    tracing.stop()
    assert tracing.counts() == TraceCounts(1, 1)
    assert receiver.events() == []


# the caller is never held up


def test_a_full_queue_drops_counts_and_never_waits(trace: Trace) -> None:
    held = HeldExporter()
    tracing = trace(lambda: Exporters(held, None), queue=4)
    tracing.offer(ended("in the exporter"))
    assert held.entered.wait(DEADLINE_S)
    slowest_s = 0.0
    for n in range(100):
        started_s = time.monotonic()
        tracing.offer(ended(f"request-{n}"))
        slowest_s = max(slowest_s, time.monotonic() - started_s)
    counts = tracing.counts()
    assert (counts.chosen, counts.dropped, counts.waiting) == (101, 96, 5)
    assert slowest_s < 1.0
    held.let_go.set()
    tracing.stop()
    assert tracing.counts() == TraceCounts(chosen=101, exported=5, dropped=96)


def test_requests_without_a_span_take_no_place_in_the_queue(trace: Trace) -> None:
    held = HeldExporter()
    tracing = trace(lambda: Exporters(held, None), queue=2)
    tracing.offer(ended("in the exporter"))
    assert held.entered.wait(DEADLINE_S)
    for n in range(100):
        tracing.offer(ended(f"request-{n}", traceparent=UNSAMPLED))
    tracing.offer(ended("flagged", traceparent=UNSAMPLED, scores=FLAGGED))
    assert (tracing.counts().chosen, tracing.counts().dropped) == (2, 0)
    held.let_go.set()


@pytest.mark.parametrize("kind", ["dead", "frozen"])
def test_a_collector_that_does_not_answer_delays_neither_the_caller_nor_the_end(
    trace: Trace, frozen_collector: FrozenCollector, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    endpoint = frozen_collector.endpoint if kind == "frozen" else f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    tracing = trace(shutdown_s=1.0, log=quiet())
    started_s = time.monotonic()
    for n in range(200):
        tracing.offer(ended(f"request-{n}"))
    assert time.monotonic() - started_s < 1.0
    started_s = time.monotonic()
    tracing.stop()
    assert time.monotonic() - started_s < 1.5
    counts = tracing.counts()
    assert (counts.chosen, counts.exported, counts.waiting) == (200, 0, 0)
    assert counts.failed >= 8  # the batch that was under way
    assert counts.failed + counts.dropped == 200


def test_spans_flow_again_within_seconds_once_the_collector_is_back(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    tracing = trace(log=quiet())
    tracing.offer(ended("lost"))
    wait_for(tracing, lambda c: c.failed == 1)
    receiver = Receiver(port)
    receiver.start()
    started_s = time.monotonic()
    while not tracing.counts().exported:  # those offered while gRPC has not yet looked again may still fail
        assert time.monotonic() - started_s < 5.0
        tracing.offer(ended("kept"))
        threading.Event().wait(0.1)
    receiver.stop()


def test_what_waits_at_the_end_is_still_exported(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
    spans = InMemorySpanExporter()
    events = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # has no types
    tracing = trace(lambda: Exporters(spans, events), queue=16)
    for n in range(8):
        tracing.offer(ended(f"request-{n}"))
    tracing.stop()
    assert tracing.counts() == TraceCounts(chosen=8, exported=8, events_exported=8)
    names = [dict(span.attributes or {})["gen_ai.request.id"] for span in spans.get_finished_spans()]
    assert names == [f"request-{n}" for n in range(8)]
    records: Sequence[ReadableLogRecord] = events.get_finished_logs()
    assert len(records) == 8


def test_a_request_offered_after_the_end_is_dropped_and_counted_and_stopping_twice_is_fine(trace: Trace) -> None:
    tracing = trace(lambda: Exporters(InMemorySpanExporter(), None))
    tracing.stop()
    tracing.offer(ended())
    tracing.stop()
    assert tracing.counts() == TraceCounts(chosen=1, dropped=1)


def test_no_thread_is_left_behind(trace: Trace) -> None:
    tracing = trace(lambda: Exporters(InMemorySpanExporter(), None))
    assert any(thread.name == "traces" for thread in threading.enumerate())
    tracing.stop()
    assert not any(thread.name == "traces" for thread in threading.enumerate())


# configuration


@pytest.mark.parametrize("off", ["config", "OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none"])
def test_tracing_that_is_off_makes_nothing_and_takes_nothing(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    if "=" in off:
        monkeypatch.setenv(*off.split("="))

    def refuse() -> Exporters:
        raise AssertionError("an exporter was made")

    tracing = trace(refuse, enabled=off != "config")
    tracing.offer(ended())
    assert tracing.counts() == TraceCounts()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_LOGS_EXPORTER", "console"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "long"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "rar"),
    ],
)
def test_an_otel_variable_that_cannot_be_followed_stops_the_start(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    wanted = name if "OTLP_TIMEOUT" not in name and "COMPRESSION" not in name else "OTEL_EXPORTER_OTLP_"
    with pytest.raises(ConfigError, match=wanted):
        trace()
    assert not any(thread.name == "traces" for thread in threading.enumerate())


def test_the_pace_and_the_switches_are_read_from_the_environment() -> None:
    assert pace({}) == Pace()
    assert pace({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7", "OTEL_BSP_SCHEDULE_DELAY": "250"}) == Pace(7, 0.25)
    assert not disabled({})
    assert disabled({"OTEL_SDK_DISABLED": "True"})


def test_two_wrong_variables_are_told_together() -> None:
    with pytest.raises(ConfigError) as refused:
        connect({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_LOGS_EXPORTER": "console"})
    assert len(refused.value.problems) == 2


def test_what_the_library_says_becomes_one_line_of_our_log_and_nothing_else(
    trace: Trace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    for repeated in logging.getLogger(OTLPExporterMixin.__module__).filters:
        vars(repeated).pop("last_log", None)  # the library tells the same trouble once in 20 s, over all tests
    receiver.refuse = True
    lines: list[str] = []
    tracing = trace(log=Log(ManualClock(), write=lines.append))
    tracing.offer(ended("private-id"))
    wait_for(tracing, lambda c: c.failed == 1)
    tracing.stop()
    assert sum("otel_library" in line and "PERMISSION_DENIED" in line for line in lines) == 1
    assert "private-id" not in "".join(lines)
    assert capfd.readouterr() == ("", "")
