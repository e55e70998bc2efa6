"""One batch through the stages, one outcome in the ledger. Owned by one thread: nothing here is locked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import (
    Dropped,
    DropReason,
    EngineIdInUseError,
    OtherModelError,
    Rejected,
    RejectReason,
    TooManyEnginesError,
)
from sidecar.judge.judge import Judge, Verdict
from sidecar.judge.policy import Policy
from sidecar.judge.tally import SECONDS_EDGES, SHARE_EDGES, Tally
from sidecar.ladder import Effects, Ladder, fewer, shed
from sidecar.ledger import Ledger
from sidecar.outcome import NO_ID, Arrival, Result
from sidecar.reading.coverage import Coverage
from sidecar.reading.kernels import Kernels
from sidecar.reading.others import NOBODY, Others
from sidecar.reading.plan import Plan
from sidecar.reading.read import Readings, read
from sidecar.reading.shed import Shed
from sidecar.recent import RecentIds
from sidecar.snapshot import EndedRequest, Rung, Stage
from sidecar.types import Action, BatchId, EngineId, ModelIdentity, RequestId, StepBatch, TrafficReport

_FOR_READING = 0.75  # of the time that is left; the rest is for comparing and for the way back


class Pipeline:
    """admit -> read -> judge -> (reply) -> account, for one model.

    ``ended`` is called with every request that ends: it must not block. ``ledger`` and ``kernels`` are made here if not given.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        ended: Callable[[EndedRequest], None],
        ledger: Ledger | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._ended = ended
        self._recent = RecentIds(config.limits.dedup_ids)
        self._pending: deque[tuple[Readings, StepBatch]] = deque()  # replied, not yet accounted for
        self._swept_s = clock.monotonic_s()
        self._accounted = 0
        self._shed = Shed()
        self._ended_all = False
        self.effects: Effects = shed(Rung.FULL)
        self.ladder = Ladder(config.ladder, clock)
        self.kernels = Kernels(config.worker.calibrate_ms / 1e3) if kernels is None else kernels
        self.ledger = Ledger() if ledger is None else ledger
        self.others: Others = NOBODY
        self.plan: Plan | None = None
        self.judge: Judge | None = None
        self.unknown_signals: tuple[str, ...] = ()  # that the configuration has an action for
        self.coverage = Coverage(config.coverage, clock)
        self.stages = {stage: Tally(SECONDS_EDGES) for stage in Stage}
        self.budget_use = Tally(SHARE_EDGES)
        self.queue_age = Tally(SECONDS_EDGES)
        self.engines_refused = 0
        self.verdicts = dict.fromkeys(Action, 0)
        self.verdicts_late = 0
        self.projections_checked = self.projections_wrong = 0

    # the plan

    def admit(self, model: ModelIdentity, engine: EngineId) -> None:
        """Whether the engine may register. Raises EngineIdInUseError, OtherModelError or TooManyEnginesError."""
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

    def bind(self, plan: Plan) -> None:
        """Put a plan in force, between two batches."""
        self.kernels.bind(plan)
        self.others.bind(plan, self.kernels)
        policy = Policy(self._config.verdicts, plan)
        judge = Judge(plan, policy, self._config.limits, self._clock, self._ended)
        self._settle_all()
        if self.judge is not None and self.plan is not None and self.plan.model == plan.model:
            judge.succeed(self.judge)
        elif self.judge is not None:
            self.judge.end_all("model_changed")
            self.coverage.retire_all()
        self.plan, self.judge, self.unknown_signals = plan, judge, policy.unknown
        self.coverage.bind(plan)
        self._apply_rung()

    def introduce(self, report: TrafficReport) -> None:
        """An admitted engine, with what it had computed before."""
        self.coverage.register(report)

    # batches

    def arrive(self) -> None:
        """A step batch came in: it is in flight until ``submit``, ``reject`` or ``abandon`` books its outcome."""
        self.ledger.step_batches.receive(1)

    def submit(self, batch: StepBatch, arrival: Arrival, report: TrafficReport | None = None) -> Result:
        """Take a decoded batch to its outcome and book it. ``settle`` must be called once the reply is written.

        report: the engine's own count up to this batch, taken in unless the batch is refused.
        An exception that is neither Rejected nor Dropped is a bug: the batch is booked as dropped{internal}, and it is raised.
        """
        decoded_s = self._clock.monotonic_s()
        self.ledger.rows.receive(batch.row_count)
        try:
            made = self._score(batch, arrival)
        except Rejected as rejected:
            self.ledger.step_batches.reject(rejected.reason, 1)
            self.ledger.rows.reject(rejected.reason, batch.row_count)
            return Result(batch.batch_id, False, rejected.reason, rejected.field)
        except Dropped as dropped:
            made = self._drop(batch, dropped.reason)
        except Exception:
            self._drop(batch, DropReason.INTERNAL)
            raise
        if made.scored:
            self._time(batch, arrival, decoded_s)
        if report is not None and self.coverage.knows(report.engine_id):
            self.coverage.report(report)
        return made

    def _drop(self, batch: StepBatch, reason: DropReason) -> Result:
        self.ledger.step_batches.drop(reason, 1)
        self.ledger.rows.drop(reason, batch.row_count)
        if not batch.verdict_within_s or reason is DropReason.DUPLICATE:
            return Result(batch.batch_id, False, reason)
        action = self._config.verdicts.at_deadline
        verdicts = tuple(Verdict(one, action) for one in batch.segments.request_ids)
        self.verdicts_late += len(verdicts)
        self.verdicts[action] += len(verdicts)
        return Result(batch.batch_id, False, reason, verdicts=verdicts, late=True)

    def _score(self, batch: StepBatch, arrival: Arrival) -> Result:
        plan, judge = self._admitted(batch)
        self._in_time(batch, judge, arrival)
        with self._timed(Stage.READ):
            self.others.begin(self._until_s(batch, arrival))
            readings = read(plan, batch, self.kernels, self._shed, self.others)
        self._take(batch, judge, arrival)
        self.coverage.saw(batch.engine_id, readings.taps)
        if not readings.rows_scored:
            raise Dropped(_why_nothing(readings))
        with self._timed(Stage.JUDGE):
            verdicts = judge.judge(readings, batch)
        self._book(readings)
        for verdict in verdicts:
            self.verdicts[verdict.action] += 1
        if batch.verdict_within_s and self._clock.monotonic_s() - arrival.posted_s > batch.verdict_within_s:
            self.verdicts_late += len(verdicts)  # read, but whoever waited has helped himself by now
        self._pending.append((readings, batch))
        return Result(batch.batch_id, True, plan_generation=plan.generation, verdicts=verdicts)

    def _admitted(self, batch: StepBatch) -> tuple[Plan, Judge]:
        if self._ended_all:
            raise Dropped(DropReason.SHUTTING_DOWN)
        if not self.coverage.knows(batch.engine_id) or self.plan is None or self.judge is None:
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "step_batch.engine_id")
        if batch in self._recent:
            raise Dropped(DropReason.DUPLICATE)
        return self.plan, self.judge

    def _in_time(self, batch: StepBatch, judge: Judge, arrival: Arrival) -> None:
        """Raises Dropped for a batch whose verdict would be of no use any more, or that the ladder gives up."""
        late = self._clock.monotonic_s() - arrival.posted_s > self._within_s(batch)
        if late or self.effects.off:
            self._take(batch, judge, arrival)
            self._step(0.0, arrival)
            raise Dropped(DropReason.DEADLINE if late else DropReason.LADDER)

    def _within_s(self, batch: StepBatch) -> float:
        queue_s = self._config.budget.queue_s
        return min(batch.verdict_within_s or queue_s, queue_s)

    def _until_s(self, batch: StepBatch, arrival: Arrival) -> float:
        """So long are readings waited for that others make: what comes later is of no use to the caller."""
        now_s = self._clock.monotonic_s()
        return now_s + _FOR_READING * (arrival.posted_s + self._within_s(batch) - now_s)

    def _take(self, batch: StepBatch, judge: Judge, arrival: Arrival) -> None:
        """The batch is not refused: what it says besides its rows counts."""
        self._recent.add(batch)
        self.queue_age.add(arrival.waited_s)
        judge.finish(batch.engine_id, batch.finished)

    def _time(self, batch: StepBatch, arrival: Arrival, decoded_s: float) -> None:
        """A scored batch's way: from the last byte to the verdict is what the budget is about."""
        self.stages[Stage.WAIT].add(arrival.waited_s)
        self.stages[Stage.DECODE].add(decoded_s - arrival.taken_s)
        budget = self._config.budget
        allowed_s = budget.step_ms / 1e3 * max(1.0, batch.row_count / budget.rows)
        use = (self._clock.monotonic_s() - arrival.posted_s) / allowed_s
        self.budget_use.add(use)
        self._step(use, arrival)

    def _book(self, readings: Readings) -> None:
        rows = self.ledger.rows
        rows.score(readings.rows_scored)
        rows.drop(DropReason.NO_PLAN, readings.rows_without_plan)
        rows.drop(DropReason.LADDER, readings.rows_shed)
        rows.drop(DropReason.DEADLINE, readings.rows_late)
        rows.drop(DropReason.SCORE_NON_FINITE, sum(tap.non_finite_rows for tap in readings.taps))
        self.ledger.step_batches.score(1)
        self.projections_checked += sum(tap.checked_rows for tap in readings.taps)
        self.projections_wrong += sum(tap.wrong_rows for tap in readings.taps)

    def reject(self, rejected: Rejected, batch_id: BatchId = NO_ID) -> Result:
        """Book a message that could not be decoded: it had no rows that could be counted."""
        self.ledger.step_batches.reject(rejected.reason, 1)
        return Result(batch_id, False, rejected.reason, rejected.field)

    def abandon(self) -> Result:
        """Book a message whose decoding ran into a bug of ours: it had no rows that could be counted."""
        self.ledger.step_batches.drop(DropReason.INTERNAL, 1)
        return Result(NO_ID, False, DropReason.INTERNAL)

    def settle(self) -> None:
        """Account for batches whose replies are written, and end requests that went quiet."""
        self._settle_all()
        if self.judge is None:
            return
        now = self._clock.monotonic_s()
        if now - self._swept_s >= 1.0:
            self._swept_s = now
            self.judge.retire_idle()
            if self.ladder.tick() is not None:
                self._apply_rung()
        self.judge.sweep()

    def _settle_all(self) -> None:
        while self._pending and self.judge is not None:
            readings, batch = self._pending.popleft()
            self._accounted += 1
            every = self.effects.account_every
            if self._accounted % every == 0:
                with self._timed(Stage.ACCOUNT):
                    self.judge.account(readings, batch, every)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        start = self._clock.monotonic_s()
        yield
        self.stages[stage].add(self._clock.monotonic_s() - start)

    # the ladder

    def _step(self, use: float, arrival: Arrival) -> None:
        if self.ladder.step(use, arrival.waited_s) is not None:
            self._apply_rung()

    def _apply_rung(self) -> None:
        self.effects = shed(self.ladder.rung)
        if self.plan is None or self.judge is None:
            return
        taps = tuple(self.plan.taps)
        left = fewer(taps, self.plan.verdict_taps) if self.effects.fewer_tap_points else taps
        self._shed = Shed(self.effects.token_stride, frozenset(taps) - frozenset(left))
        self.judge.weight = round(1 / self.effects.sampling_factor)

    # engines

    def report(self, report: TrafficReport) -> None:
        """Raises Rejected for an engine that did not register."""
        if not self.coverage.knows(report.engine_id):
            raise Rejected(RejectReason.UNKNOWN_ENGINE, "traffic.engine_id")
        self.coverage.report(report)

    def finished(self, engine: EngineId, requests: tuple[RequestId, ...]) -> None:
        if self.judge is not None:
            self.judge.finish(engine, requests)

    def stream_opened(self, engine: EngineId) -> bool:
        """False if no such engine is registered: the stream is nobody's yet."""
        self.coverage.stream_opened(engine)
        return self.coverage.knows(engine)

    def stream_closed(self, engine: EngineId, *, goodbye: bool) -> None:
        if goodbye:
            self.coverage.goodbye(engine)
        else:
            self.coverage.stream_closed(engine)

    def end_all(self) -> None:
        """The process ends: settle what is open and end every request. A batch that comes later is dropped."""
        self._ended_all = True
        self._settle_all()
        if self.judge is not None:
            self.judge.end_all("shutdown")

    def close(self) -> None:
        """Nothing comes any more. The ledger is not to be used after this."""
        self.others.stop()
        self.ledger.close()

    @property
    def dedup_evicted(self) -> int:
        return self._recent.evicted


def _why_nothing(readings: Readings) -> DropReason:
    if readings.rows_late:
        return DropReason.DEADLINE
    if readings.rows_shed:
        return DropReason.LADDER
    if readings.rows_without_plan:
        return DropReason.NO_PLAN
    return DropReason.SCORE_NON_FINITE if readings.taps else DropReason.NO_ROWS
