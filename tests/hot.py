"""A pipeline by itself, with the control process's part done by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from probes.registry import Loaded
from protos.stethoscope.v1 import ingest_pb2
from sidecar import published
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.ingest.decode import Decoder
from sidecar.outcome import Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.reading.plan import build_plan
from sidecar.snapshot import EndedRequest, Snapshot
from sidecar.types import EngineId, ModelIdentity, StepBatch, TapLedgerCounts, TrafficReport
from tests.builders import MODEL


class Hot:
    """Owns a pipeline, and a decoder for wire batches. Messages arrive at the clock's present."""

    def __init__(
        self,
        clock: Clock,
        ended: Callable[[EndedRequest], None] = lambda _: None,
        artifacts: Iterable[Loaded] = (),
        config: Config | None = None,
    ) -> None:
        self.config = Config() if config is None else config
        self.clock = clock
        self.pipeline = Pipeline(self.config, clock, ended)
        self.decoder = Decoder(self.config.limits, clock)
        self._artifacts = tuple(artifacts)

    def register(self, engine: str = "engine-0", model: ModelIdentity = MODEL) -> None:
        self.pipeline.admit(model, EngineId(engine))
        plan = self.pipeline.plan
        if plan is None or plan.model != model:
            generation = 1 if plan is None else plan.generation + 1
            self.pipeline.bind(build_plan(generation, self._artifacts, model, before=plan))
        self.pipeline.introduce(TrafficReport(EngineId(engine), 0, 0, (), 0, TapLedgerCounts()))

    def reload(self, artifacts: Iterable[Loaded]) -> None:
        before = self.pipeline.plan
        assert before is not None
        self._artifacts = tuple(artifacts)
        self.pipeline.bind(build_plan(before.generation + 1, self._artifacts, before.model, before=before))

    def submit(self, batch: ingest_pb2.StepBatch | StepBatch, waited_s: float = 0.0) -> Result:
        if isinstance(batch, ingest_pb2.StepBatch):
            batch = self.decoder.step_batch(batch)
        self.pipeline.arrive()
        now_s = self.clock.monotonic_s()
        return self.pipeline.submit(batch, Arrival(now_s - waited_s, now_s))

    def snapshot(self) -> Snapshot:
        self.pipeline.settle()
        told = published.facts(self.pipeline)
        made = published.snapshot(told, published.arrays(self.pipeline), self.pipeline.plan, ())
        ledger = self.pipeline.books.ledger
        return replace(made, step_batches=ledger.step_batches.counts(), rows=ledger.rows.counts())
