"""The composition root of the control process: everything is made here, started in order, stopped in reverse."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from protos.stethoscope.v1 import control_pb2
from sidecar import published
from sidecar.address import socket_path
from sidecar.clock import Clock, SystemClock
from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.export.http import MetricsServer
from sidecar.export.metrics import MetricsCollector
from sidecar.export.process import watch
from sidecar.export.traces import TraceCounts, Tracing
from sidecar.ingest import wire
from sidecar.ingest.server import IngestServer
from sidecar.ledger import LedgerFile
from sidecar.live.canary_runner import CanaryRunner
from sidecar.live.keeper import Keeper
from sidecar.log import Level, Log
from sidecar.plans import Plans
from sidecar.reload import Reloader
from sidecar.snapshot import EndedRequest, Snapshot, Transport
from sidecar.version import VERSION
from sidecar.worker.build import Parts
from sidecar.worker.handle import WorkerHandle


def data_path(config: Config, what: str) -> Path | None:
    """Where the ledger or the state of circuits is kept: in the configured folder, else beside the Unix socket; None is memory."""
    socket = socket_path(config.listen.address)
    if config.data.folder is not None:
        return config.data.folder / what
    return None if socket is None else Path(f"{socket}.{what}")


class Sidecar:
    """The whole service. ``start`` raises ConfigError or ArtifactError and leaves nothing running; ``stop`` twice is fine.

    lost: called if the worker ends by itself; the sidecar is of no use then, and must be stopped.
    parts: what the worker is made of, if it is a thread.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock | None = None,
        write_log: Callable[[str], None] | None = None,
        *,
        lost: Callable[[], None] = lambda: None,
        parts: Parts | None = None,
    ) -> None:
        self._config = config
        self._clock = SystemClock() if clock is None else clock
        level = Level[config.log.level]
        self.log = Log(self._clock, level, config.log.lines_per_s, *([write_log] if write_log else []))
        self._lost = lost
        self._tracing = Tracing(config.traces, version=VERSION, log=self.log) if config.traces.enabled else None
        self._ledger = LedgerFile(data_path(config, "ledger"))
        self.worker = WorkerHandle(
            config,
            self._clock,
            self.log,
            self._ledger,
            ended=self._request_ended,
            sampling=self._sample,
            lost=self._worker_lost,
            parts=parts,
        )
        self.plans = Plans(config, self.worker, self._settings_changed)
        self._canaries = (
            CanaryRunner(config, self._clock, lambda: self.plans.plan, self.log) if config.canary.url else None
        )
        self.keeper = Keeper(
            config,
            self._clock,
            self.worker,
            self.plans.of,
            self.log,
            self._canaries,
            data_path(config, "circuits"),
        )
        if self._canaries is not None:
            self._canaries.fetch = self.keeper.look
        self._reloader = Reloader(config, self.plans, self.log)
        self._ingest = IngestServer(config, self.worker, self.plans, self.status, self.log)
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
        self._processes = {"control": watch("control", os.getpid)}
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
            self._start(self.worker.start, self.worker.stop)
            if (pid := self.worker.pid) is not None:
                self._processes["worker"] = watch("worker", lambda: pid)
            self._start(self._reloader.start, self._reloader.stop)
            if self._tracing is not None:
                self._start(self._tracing.start, self._tracing.stop)
            self._start(self.keeper.start, self.keeper.stop)
            if self._canaries is not None:
                self._start(self._canaries.start, self._canaries.stop)
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
            worker_pid=self.worker.pid,
            ledger=self._ledger.where,
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
        self.keeper.stop()  # the worker must still be there
        self.worker.finish()
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

    def _worker_lost(self) -> None:
        self._ingest.worker_lost()
        self._lost()

    def _sample(self, factor: float) -> None:
        self.plans.sample(factor)

    def _settings_changed(self) -> None:
        self._ingest.changed()

    def _request_ended(self, ended: EndedRequest) -> None:
        if self._tracing is not None:
            self._tracing.offer(ended)

    def snapshot(self) -> Snapshot:
        told, arrays = self.worker.counts()
        made = published.snapshot(told, arrays, self.plans.of(told["plan_generation"]), self.plans.waiting())
        traces = TraceCounts() if self._tracing is None else self._tracing.counts()
        settings = self.plans.settings()
        step_batches, rows = self._ledger.counts()
        return replace(
            made,
            step_batches=step_batches,
            rows=rows,
            uptime_s=self._clock.monotonic_s() - self._started_s,
            budget_s=self._config.budget.step_ms / 1e3,
            run=replace(
                made.run,
                mode=settings.mode.value,
                request_fraction=settings.sampling.request_fraction,
                streams=tuple((engine, Transport(name)) for engine, name in told["streams"]),
                age_s=told["age_s"],
                worker="thread" if self.worker.pid is None else "process",
                ledger=self._ledger.where,
            ),
            circuits=replace(made.circuits, kept=self.keeper.snapshot()),
            reloads=dict(self._reloader.counts),
            log_lines_suppressed=self.log.suppressed + told["log_lines_suppressed"],
            processes=tuple(read() for read in self._processes.values()),
            spans_queue_dropped=traces.dropped + told["ended_lost"],
            spans_exported=traces.exported,
            spans_failed=traces.failed,
            events_exported=traces.events_exported,
            events_failed=traces.events_failed,
            http_requests={outcome.value: count for outcome, count in self._metrics.counts().items()},
        )

    def status(self) -> control_pb2.GetStatusResponse:
        return wire.status(self.snapshot(), VERSION)
