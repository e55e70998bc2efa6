"""Ended requests become spans and events on a thread of their own; whoever ends a request never waits for it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar.config import Traces
from sidecar.export import otlp
from sidecar.export.backlog import Backlog
from sidecar.export.otel_log import OtelLogBridge
from sidecar.export.spans import Chosen, Recorder
from sidecar.log import Level, Log
from sidecar.snapshot import EndedRequest

_RANDOM_BITS = 56  # of a trace id, from its end: what W3C Trace Context promises to be random, and samplers decide by
_UNCANCELLED_SHARE = 0.8  # of the time at shutdown; the rest is for the call under way to notice that it was cancelled


@dataclass(frozen=True, slots=True)
class TraceCounts:
    """What became of the spans: chosen = exported + failed + dropped + waiting. Exported: the collector said so.

    ``waiting`` are those in the queue or in an export now under way.
    """

    chosen: int = 0
    exported: int = 0
    failed: int = 0
    dropped: int = 0
    events_exported: int = 0
    events_failed: int = 0

    @property
    def waiting(self) -> int:
        return self.chosen - self.exported - self.failed - self.dropped


class Tracing:
    """One span for every sampled or flagged request, child of the request's own trace.

    A request with a trace gets a span if its trace is sampled; one without gets a trace of its own, for a share of
    ``root_fraction`` of them; a flagged one always gets its span. Canaries get none.
    log: where trouble is told, ours and the OpenTelemetry library's; without it, only the counts tell.
    connect: makes the exporters at start(); the default reads the OTEL_* variables.
    draw: 128 random bits for the trace id of a root span.
    """

    def __init__(
        self,
        config: Traces,
        *,
        version: str,
        log: Log | None = None,
        connect: Callable[[], otlp.Exporters] = otlp.connect,
        draw: Callable[[], int] = lambda: secrets.randbits(128),
    ) -> None:
        self._config = config
        self._version = version
        self._log = log
        self._bridge = None if log is None else OtelLogBridge(log)
        self._connect = connect
        self._draw = draw
        self._backlog: Backlog[Chosen] = Backlog(config.queue)
        self._lock = threading.Lock()  # of the totals
        self._totals = dict.fromkeys((field.name for field in fields(TraceCounts)), 0)
        self._exporters: otlp.Exporters | None = None  # None while tracing is off
        self._worker: threading.Thread | None = None
        self._given_up = threading.Event()

    def start(self) -> None:
        """Start the exporting thread, unless the config or the environment turns tracing off.

        Raises ConfigError if the OTEL_* variables ask for what cannot be done. A collector that is down is no error.
        """
        if not self._config.enabled or otlp.disabled() or self._exporters is not None:
            return
        pace, recorder, exporters = otlp.pace(), Recorder(self._version), self._connect()
        self._exporters = exporters
        if self._bridge is not None:
            self._bridge.attach()
        self._worker = threading.Thread(target=self._work, args=(exporters, recorder, pace), name="traces", daemon=True)
        self._worker.start()

    def offer(self, ended: EndedRequest) -> None:
        """Take an ended request if it is to have a span. Never waits, never raises; what finds no place is counted."""
        if self._exporters is None:
            return
        chosen = choose(ended, self._config.root_fraction, self._draw)
        if chosen is None:
            return
        self._book(chosen=1)  # first, so that no count ever runs ahead of it
        if not self._backlog.put(chosen):
            self._book(dropped=1)

    def counts(self) -> TraceCounts:
        """Tell what became of the spans and events since the start."""
        with self._lock:
            return TraceCounts(**self._totals)

    def stop(self) -> None:
        """Export what waits, for at most ``shutdown_s``; what is left is dropped and counted. Twice is fine."""
        self._backlog.close()
        if self._worker is None or self._exporters is None:
            return
        ends_s = time.monotonic() + self._config.shutdown_s
        self._worker.join(self._config.shutdown_s * _UNCANCELLED_SHARE)
        self._given_up.set()
        self._exporters.spans.shutdown()  # closes the channel: a call under way fails now and not after its timeout
        if self._exporters.events is not None:
            self._exporters.events.shutdown()  # type: ignore[no-untyped-call]  # the SDK left its type out
        self._worker.join(max(0.0, ends_s - time.monotonic()))
        self._worker = None
        if self._bridge is not None:
            self._bridge.detach()
        self._book(dropped=len(self._backlog.take(self._config.queue, 0.0)))

    def _work(self, exporters: otlp.Exporters, recorder: Recorder, pace: otlp.Pace) -> None:
        while not self._given_up.is_set():
            batch = self._backlog.take(pace.batch, pace.delay_s)
            if batch:
                self._export(exporters, recorder, batch)
            elif self._backlog.closed:
                return

    def _export(self, exporters: otlp.Exporters, recorder: Recorder, batch: list[Chosen]) -> None:
        """Send one batch and count by the collector's own answers: spans first, then the events that point at them."""
        try:
            recorded = recorder.record(batch)
        except Exception as bug:  # noqa: BLE001 - counted; the next batch has its own chance
            self._tell("spans_not_made", bug)
            self._book(failed=len(batch))
            return
        sent = self._succeeds(lambda: exporters.spans.export(recorded.spans) is SpanExportResult.SUCCESS)
        self._book(**{"exported" if sent else "failed": len(batch)})
        if exporters.events is not None and recorded.events:
            export = exporters.events.export
            sent = self._succeeds(lambda: export(recorded.events) is LogRecordExportResult.SUCCESS)
            self._book(**{"events_exported" if sent else "events_failed": len(recorded.events)})

    def _succeeds(self, export: Callable[[], bool]) -> bool:
        try:
            return export()
        except Exception as bug:  # noqa: BLE001 - an exporter that raises has failed: the caller counts it
            self._tell("export_failed", bug)
            return False

    def _tell(self, event: str, bug: Exception) -> None:
        if self._log is not None:
            self._log.event(Level.ERROR, event, type=type(bug).__name__)

    def _book(self, **changes: int) -> None:
        with self._lock:
            for name, n in changes.items():
                self._totals[name] += n


def choose(ended: EndedRequest, root_fraction: float, draw: Callable[[], int]) -> Chosen | None:
    """Decide whether a request gets a span, before it takes a place in the queue.

    A root's trace id is drawn first and decides by its random bits, as consistent samplers further down will do again:
    chosen if the last 56 bits are at least (1 - root_fraction) * 2^56.
    """
    if ended.canary:
        return None
    if ended.traceparent is not None:
        return Chosen(ended, 0) if ended.traceparent.sampled or ended.flagged else None
    trace_id = draw() or 1  # 0 is not a trace id
    randomness = trace_id & ((1 << _RANDOM_BITS) - 1)
    sampled = randomness >= round((1 - root_fraction) * (1 << _RANDOM_BITS))
    return Chosen(ended, trace_id) if sampled or ended.flagged else None
