"""The composition root: everything is made here, started in order, stopped in reverse."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace

from probes.artifact import Artifact
from probes.registry import FolderWatch, load_folder
from protos.stethoscope.v1 import control_pb2
from sidecar.clock import Clock, SystemClock
from sidecar.config import Config
from sidecar.errors import ArtifactError, ArtifactReason, ConfigError
from sidecar.export.http import MetricsServer
from sidecar.export.metrics import MetricsCollector
from sidecar.export.traces import TraceCounts, Tracing
from sidecar.ingest import wire
from sidecar.ingest.decode import Decoder
from sidecar.ingest.server import IngestServer
from sidecar.log import Level, Log
from sidecar.pipeline import Pipeline
from sidecar.snapshot import EndedRequest, ReloadOutcome, Snapshot
from sidecar.version import VERSION


def load_artifacts(config: Config) -> tuple[Artifact, ...]:
    """The configured folder's artifacts, none if no folder is configured. Raises ArtifactError."""
    if config.artifacts.folder is None:
        return ()
    found = load_folder(config.artifacts.folder, limit=config.artifacts.max_artifacts)
    columns: dict[str, int] = {}
    for one in found:
        where = one.manifest.tap_point
        columns[where] = columns.get(where, 0) + one.directions.shape[1]
        if columns[where] > config.artifacts.max_columns:
            raise ArtifactError(
                ArtifactReason.TOO_MANY, f"{where}: more than {config.artifacts.max_columns} directions"
            )
    return found


class Reloader:
    """Watches the artifact folder on a thread of its own: a sound change is put in force, an unsound one is counted."""

    def __init__(self, config: Config, pipeline: Pipeline, log: Log) -> None:
        self._config = config
        self._pipeline = pipeline
        self._log = log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watch: FolderWatch | None = None
        self.counts = {
            ReloadOutcome.OK.value: 0,
            ReloadOutcome.REFUSED.value: 0,
        }  # written by the thread, read by snapshots

    def start(self) -> None:
        """Load for the first time. Raises ArtifactError if an artifact is unsound: a sidecar does not start half blind."""
        if self._config.artifacts.folder is None:
            self._log.event(Level.WARNING, "no_artifacts", text="nothing is read: artifacts.folder is not set")
            return
        self._watch = FolderWatch(self._config.artifacts.folder)
        self._pipeline.load(load_artifacts(self._config))
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stop.wait(self._config.artifacts.reload_s):
            if self._watch is not None and self._watch.changed():
                self._reload()

    def _reload(self) -> None:
        try:
            self._pipeline.load(load_artifacts(self._config))
        except ArtifactError as refused:
            self.counts[ReloadOutcome.REFUSED.value] += 1
            self._log.event(Level.ERROR, "reload_refused", reason=refused.reason.value, text=refused.text)
        except Exception as bug:  # noqa: BLE001 - the watch must outlive any surprise; counted, and the old plan serves on
            self.counts[ReloadOutcome.REFUSED.value] += 1
            self._log.event(Level.ERROR, "reload_failed", type=type(bug).__name__)
        else:
            self.counts[ReloadOutcome.OK.value] += 1
            self._log.event(Level.INFO, "reloaded", plan_generation=self._pipeline.generation)


class Sidecar:
    """The whole service. ``start`` raises ConfigError or ArtifactError and leaves nothing running; ``stop`` twice is fine."""

    def __init__(
        self, config: Config, clock: Clock | None = None, write_log: Callable[[str], None] | None = None
    ) -> None:
        self._config = config
        self._clock = SystemClock() if clock is None else clock
        level = Level[config.log.level]
        self.log = Log(self._clock, level, config.log.lines_per_s, *([write_log] if write_log else []))
        self._tracing = Tracing(config.traces, version=VERSION, log=self.log) if config.traces.enabled else None
        self.pipeline = Pipeline(config, self._clock, self._request_ended)
        self._reloader = Reloader(config, self.pipeline, self.log)
        self._ingest = IngestServer(
            config.listen,
            self.pipeline,
            Decoder(config.limits, self._clock),
            config.sampling.policy(),
            self.status,
            self._clock,
            self.log,
        )
        collector = MetricsCollector(self.snapshot, version=VERSION)
        self._metrics = MetricsServer(
            config.metrics.host,
            config.metrics.port,
            collector.render,
            max_connections=config.metrics.max_connections,
            header_timeout_s=config.metrics.header_timeout_s,
            ready=lambda: self._ready,
            log=self.log,
        )
        self._started_s = self._clock.monotonic_s()
        self._ready = False
        self._stops: list[Callable[[], None]] = []

    @property
    def address(self) -> str:
        return self._ingest.address

    @property
    def metrics_port(self) -> int:
        return self._metrics.port

    def start(self) -> None:
        try:
            self._start(self._ingest.bind, self._ingest.stop)
            self._start(self._reloader.start, self._reloader.stop)
            if self._tracing is not None:
                self._start(self._tracing.start, self._tracing.stop)
            self._start(self._start_metrics, self._metrics.stop)
            self._start(self._ingest.start, self._stop_ingest)
        except BaseException:
            self.stop()
            raise
        gc.collect()
        gc.freeze()  # what start-up made stays: a full collection later costs 100 ms with these libraries loaded
        self._ready = True
        unix = self.address.startswith("unix:")
        self.log.event(
            Level.INFO,
            "started",
            version=VERSION,
            transport="unix" if unix else "tcp",
            port=None if unix else int(self.address.rpartition(":")[2]),
            metrics_port=self.metrics_port,
        )

    def _start(self, start: Callable[[], None], stop: Callable[[], None]) -> None:
        start()
        self._stops.append(stop)

    def _start_metrics(self) -> None:
        try:
            self._metrics.start()
        except OSError as error:
            raise ConfigError([f"metrics: {error.strerror}"]) from None

    def stop(self) -> None:
        """Drain, end every request, flush traces. Metrics are served until the last count is in."""
        self._ready = False
        while self._stops:
            self._stops.pop()()

    def _stop_ingest(self) -> None:
        self._ingest.stop()
        self.pipeline.end_all()
        batches = self.snapshot().step_batches
        self.log.event(
            Level.INFO,
            "stopped",
            received=batches.received,
            scored=batches.scored,
            dropped=sum(batches.dropped.values()),
            rejected=sum(batches.rejected.values()),
            in_flight=batches.in_flight,
            balanced=batches.balanced,
        )

    def _request_ended(self, ended: EndedRequest) -> None:
        if self._tracing is not None:
            self._tracing.offer(ended)

    def snapshot(self) -> Snapshot:
        traces = TraceCounts() if self._tracing is None else self._tracing.counts()
        return replace(
            self.pipeline.snapshot(self._clock.monotonic_s() - self._started_s),
            reloads=dict(self._reloader.counts),
            log_lines_suppressed=self.log.suppressed,
            spans_queue_dropped=traces.dropped,
            spans_exported=traces.exported,
            spans_failed=traces.failed,
            events_exported=traces.events_exported,
            events_failed=traces.events_failed,
            http_requests={outcome.value: count for outcome, count in self._metrics.counts().items()},
        )

    def status(self) -> control_pb2.GetStatusResponse:
        return wire.status(self.snapshot(), VERSION)
