"""One batch through the stages, one outcome in the ledger. The lock taken once a batch is the boundary of everything inside."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from probes.artifact import Artifact
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import Dropped, DropReason, Rejected, RejectReason
from sidecar.judge.judge import Judge, Verdict
from sidecar.judge.tally import SECONDS_EDGES, SHARE_EDGES, Tally
from sidecar.ledger import Ledger
from sidecar.reading.coverage import Coverage
from sidecar.reading.plan import Plan, build_plan
from sidecar.reading.read import Readings, read
from sidecar.snapshot import ArtifactSnapshot, EndedRequest, Snapshot, Stage
from sidecar.types import BatchId, EngineId, ModelIdentity, RequestId, StepBatch, TrafficReport

NO_ID = BatchId("")


@dataclass(frozen=True, slots=True)
class Result:
    """How a batch ended: scored, or the reason why not. ``field`` is set for rejected ones only."""

    batch_id: BatchId
    scored: bool
    reason: DropReason | RejectReason | None = None
    field: str = ""
    plan_generation: int = 0
    verdicts: tuple[Verdict, ...] = ()


class OtherModelError(Exception):
    """An engine serves another model than the one that this sidecar is bound to."""


class EngineIdInUseError(Exception):
    """An engine of this id has an open stream: two engines cannot be told apart by one id."""


class TooManyEnginesError(Exception):
    """The configured number of engines is registered."""


class _RecentIds:
    """The newest batch ids, each engine's own; the oldest goes first, and is counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[tuple[EngineId, BatchId], None] = OrderedDict()
        self.evicted = 0

    def __contains__(self, batch: StepBatch) -> bool:
        return (batch.engine_id, batch.batch_id) in self._ids

    def add(self, batch: StepBatch) -> None:
        self._ids[batch.engine_id, batch.batch_id] = None
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
            self.evicted += 1


class Pipeline:
    """decode -> admit -> read -> judge -> (reply) -> account, for one model.

    Thread-safe. ``ended`` is called under the lock with every request that ends: it must not block.
    """

    def __init__(self, config: Config, clock: Clock, ended: Callable[[EndedRequest], None]) -> None:
        self._config = config
        self._clock = clock
        self._ended = ended
        self._lock = threading.Lock()
        self._binding = threading.Lock()  # one plan is made at a time; taken before _lock, never after
        self._artifacts: tuple[Artifact, ...] = ()
        self._recent = _RecentIds(config.limits.dedup_ids)
        self._pending: deque[tuple[Readings, StepBatch]] = deque()  # replied, not yet accounted for
        self._swept_s = clock.monotonic_s()
        self.generation = 0
        self.plan: Plan | None = None
        self.judge: Judge | None = None
        self.ledger = Ledger()
        self.coverage = Coverage(config.coverage, clock)
        self.stages = {stage: Tally(SECONDS_EDGES) for stage in Stage}
        self.budget_use = Tally(SHARE_EDGES)
        self.engines_refused = 0
        self._ended_all = False

    # the plan

    def load(self, artifacts: tuple[Artifact, ...]) -> None:
        """Put other artifacts in force, between two batches. Raises nothing: what does not fit stands in the plan as refused."""
        with self._binding:
            self._artifacts = artifacts
            if self.plan is not None:
                self._bind(self.plan.model)

    def register(self, model: ModelIdentity, report: TrafficReport) -> Plan:
        """An engine introduces itself. Raises EngineIdInUseError, OtherModelError or TooManyEnginesError."""
        with self._binding:
            with self._lock:
                self._admit(model, report.engine_id)
            plan = self.plan
            if plan is None or plan.model != model:
                plan = self._bind(model)
            with self._lock:
                self.coverage.register(report)
            return plan

    def _admit(self, model: ModelIdentity, engine: EngineId) -> None:
        other = self.plan is not None and self.plan.model != model
        refusal: type[Exception] | None = None
        if self.coverage.streams(engine):
            refusal = EngineIdInUseError
        elif other and self.coverage.serving:
            refusal = OtherModelError
        elif not self.coverage.knows(engine) and not self.coverage.make_room(self._config.limits.engines):
            refusal = TooManyEnginesError
        if refusal is not None:
            self.engines_refused += 1
            raise refusal

    def _bind(self, model: ModelIdentity) -> Plan:
        """Make a plan beside the running one, then swap the two between two batches."""
        plan = build_plan(self.generation + 1, self._artifacts, model)
        judge = Judge(plan, self._config.limits, self._clock, self._ended)
        with self._lock:
            self._settle()
            if self.judge is not None and self.plan is not None and self.plan.model == model:
                judge.succeed(self.judge)
            elif self.judge is not None:
                self.judge.end_all("model_changed")
                self.coverage.retire_all()
            self.generation, self.plan, self.judge = plan.generation, plan, judge
            self.coverage.bind(plan)
        return plan

    # batches

    def arrive(self) -> None:
        """A step batch came in: it is in flight until ``submit``, ``reject`` or ``abandon`` books its outcome."""
        with self._lock:
            self.ledger.step_batches.receive(1)

    def submit(self, batch: StepBatch, received_s: float, report: TrafficReport | None = None) -> Result:
        """Take a decoded batch to its outcome and book it. ``settle`` must be called once the reply is written.

        received_s: when its last byte was here, by the clock's monotonic_s: the budget runs from there.
        report: the engine's own count up to this batch, taken in unless the batch is refused.
        An exception that is neither Rejected nor Dropped is a bug: the batch is booked as dropped{internal}, and it is raised.
        """
        decoded_s = self._clock.monotonic_s()
        with self._lock:
            admitted_s = self._clock.monotonic_s()
            self.ledger.rows.receive(batch.row_count)
            try:
                made = self._score(batch)
                if made.scored:
                    self._time(received_s, decoded_s, admitted_s)
            except Rejected as rejected:
                self.ledger.step_batches.reject(rejected.reason, 1)
                self.ledger.rows.reject(rejected.reason, batch.row_count)
                return Result(batch.batch_id, False, rejected.reason, rejected.field)
            except Dropped as dropped:
                made = self._drop(batch, dropped.reason)
            except Exception:
                self._drop(batch, DropReason.INTERNAL)
                raise
            if report is not None and self.coverage.knows(report.engine_id):
                self.coverage.report(report)
            return made

    def _drop(self, batch: StepBatch, reason: DropReason) -> Result:
        self.ledger.step_batches.drop(reason, 1)
        self.ledger.rows.drop(reason, batch.row_count)
        return Result(batch.batch_id, False, reason)

    def _score(self, batch: StepBatch) -> Result:
        if self._ended_all:
            raise Dropped(DropReason.SHUTTING_DOWN)
        if not self.coverage.knows(batch.engine_id) or self.plan is None or self.judge is None:
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "step_batch.engine_id")
        if batch in self._recent:
            raise Dropped(DropReason.DUPLICATE)
        with self._timed(Stage.READ):
            readings = read(self.plan, batch)
        self._recent.add(batch)
        self.coverage.saw(batch.engine_id, readings.taps)
        self.judge.finish(batch.engine_id, batch.finished)
        if not readings.rows_scored:
            raise Dropped(_why_nothing(readings))
        with self._timed(Stage.JUDGE):
            verdicts = self.judge.judge(readings, batch)
        self._book(batch, readings)
        self._pending.append((readings, batch))
        return Result(batch.batch_id, True, plan_generation=self.plan.generation, verdicts=verdicts)

    def _time(self, received_s: float, decoded_s: float, admitted_s: float) -> None:
        """A scored batch's way: from the last byte to the verdict is what the budget is about."""
        self.stages[Stage.DECODE].add(decoded_s - received_s)
        self.stages[Stage.WAIT].add(admitted_s - decoded_s)
        self.budget_use.add((self._clock.monotonic_s() - received_s) * 1e3 / self._config.budget.step_ms)

    def _book(self, batch: StepBatch, readings: Readings) -> None:
        self.ledger.step_batches.score(1)
        self.ledger.rows.score(readings.rows_scored)
        self.ledger.rows.drop(DropReason.NO_PLAN, readings.rows_without_plan)
        self.ledger.rows.drop(
            DropReason.SCORE_NON_FINITE, batch.row_count - readings.rows_scored - readings.rows_without_plan
        )

    def reject(self, rejected: Rejected, batch_id: BatchId = NO_ID) -> Result:
        """Book a message that could not be decoded: it had no rows that could be counted."""
        with self._lock:
            self.ledger.step_batches.reject(rejected.reason, 1)
        return Result(batch_id, False, rejected.reason, rejected.field)

    def abandon(self) -> Result:
        """Book a message whose decoding ran into a bug of ours: it had no rows that could be counted."""
        with self._lock:
            self.ledger.step_batches.drop(DropReason.INTERNAL, 1)
        return Result(NO_ID, False, DropReason.INTERNAL)

    def settle(self) -> None:
        """Account for batches whose replies are written, and end requests that went quiet."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        while self._pending and self.judge is not None:
            readings, batch = self._pending.popleft()
            with self._timed(Stage.ACCOUNT):
                self.judge.account(readings, batch)
        if self.judge is None:
            return
        now = self._clock.monotonic_s()
        if now - self._swept_s >= 1.0:
            self._swept_s = now
            self.judge.retire_idle()
        self.judge.sweep()

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        start = self._clock.monotonic_s()
        yield
        self.stages[stage].add(self._clock.monotonic_s() - start)

    # engines

    def report(self, report: TrafficReport) -> None:
        """Raises Rejected for an engine that did not register."""
        with self._lock:
            if not self.coverage.knows(report.engine_id):
                raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
            self.coverage.report(report)

    def finished(self, engine: EngineId, requests: tuple[RequestId, ...]) -> None:
        with self._lock:
            if self.judge is not None:
                self.judge.finish(engine, requests)

    def stream_opened(self, engine: EngineId) -> bool:
        """False if no such engine is registered: the stream is nobody's yet."""
        with self._lock:
            self.coverage.stream_opened(engine)
            return self.coverage.knows(engine)

    def stream_closed(self, engine: EngineId, *, goodbye: bool) -> None:
        with self._lock:
            if goodbye:
                self.coverage.goodbye(engine)
            else:
                self.coverage.stream_closed(engine)

    def end_all(self) -> None:
        """The process ends: settle what is open and end every request. A batch that comes later is dropped."""
        with self._lock:
            self._ended_all = True
            self._settle()
            if self.judge is not None:
                self.judge.end_all("shutdown")

    # what others see

    def snapshot(self, uptime_s: float) -> Snapshot:
        """Copies of every count of the pipeline, consistent with one another; what others count is left at zero."""
        with self._lock:
            self._settle()
            coverage, blind = self.coverage.snapshot()
            judge = self.judge
            return Snapshot(
                uptime_s=uptime_s,
                step_batches=self.ledger.step_batches.counts(),
                rows=self.ledger.rows.counts(),
                plan_generation=self.generation,
                model=None if self.plan is None else self.plan.model,
                signals=() if judge is None else judge.snapshot(),
                coverage=coverage,
                blind=blind,
                unseen=dict(self.coverage.unseen),
                artifacts=self._waiting() if self.plan is None else self.plan.artifacts,
                stages={stage.value: tally.snapshot() for stage, tally in self.stages.items()},
                budget_s=self._config.budget.step_ms / 1e3,
                budget_use=self.budget_use.snapshot(),
                engines=self.coverage.connected,
                engines_refused=self.engines_refused,
                taps=self.coverage.taps,
                requests_tracked=0 if judge is None else len(judge.requests),
                requests_evicted=0 if judge is None else judge.evicted,
                dedup_evicted=self._recent.evicted,
                traceparents_ignored=0 if judge is None else judge.requests.traceparents_ignored,
            )

    def _waiting(self) -> tuple[ArtifactSnapshot, ...]:
        """Artifacts before any engine has registered: nothing is known yet about how they fit."""
        return tuple(
            ArtifactSnapshot(
                one.manifest.name, one.manifest.version, one.manifest.evidence.value, "no engine registered yet"
            )
            for one in self._artifacts
        )


def _why_nothing(readings: Readings) -> DropReason:
    if readings.rows_without_plan:
        return DropReason.NO_PLAN
    return DropReason.SCORE_NON_FINITE if readings.taps else DropReason.NO_ROWS
