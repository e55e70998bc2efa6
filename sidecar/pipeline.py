"""One batch through the stages, one outcome in the ledger. Owned by one thread: nothing here is locked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sidecar.books import Books
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
from sidecar.judge.judge import Judge
from sidecar.judge.policy import Policy
from sidecar.ladder import Effects, Ladder, fewer, shed
from sidecar.ledger import Ledger
from sidecar.live.canary_rows import CanaryRows
from sidecar.live.monitor import Monitor
from sidecar.live.remembered import Remembered
from sidecar.live.sharing import new_source, share_of
from sidecar.live.ticks import ClosedTicks
from sidecar.outcome import NO_ID, Arrival, Result
from sidecar.reading.coverage import Coverage
from sidecar.reading.kernels import Kernels
from sidecar.reading.others import NOBODY, Others
from sidecar.reading.plan import Plan
from sidecar.reading.read import Readings, read
from sidecar.reading.shed import Shed
from sidecar.recent import RecentIds
from sidecar.snapshot import EndedRequest, Rung, Stage
from sidecar.timings import Timings
from sidecar.types import BatchId, EngineId, ModelIdentity, RequestId, StepBatch, TrafficReport

_NO_NUMBERS = (RejectReason.NON_FINITE, DropReason.SCORE_NON_FINITE)
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
        self.books = Books(Ledger() if ledger is None else ledger, config.verdicts.at_deadline)
        self.timings = Timings(config.budget, clock)
        self.others: Others = NOBODY
        self.plan: Plan | None = None
        self.judge: Judge | None = None
        self.monitor: Monitor | None = None  # of circuits
        self.remembered: Remembered | None = None  # by a worker that is gone, until the first circuits are watched
        self.detectors_resumed: int | None = None  # of what was remembered; None: it was not asked for
        self.ticks = ClosedTicks()
        self.canaries = CanaryRows()
        self._share, self._source = share_of(config.circuits), new_source(config.circuits)
        self.unknown_signals: tuple[str, ...] = ()  # that the configuration has an action for
        self.coverage = Coverage(config.coverage, clock)
        self.engines_refused = 0

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
        self._watch_circuits(plan)
        self.plan, self.judge, self.unknown_signals = plan, judge, policy.unknown
        self.coverage.bind(plan)
        self._apply_rung()

    def _watch_circuits(self, plan: Plan) -> None:
        before, self.monitor = self.monitor, None
        if plan.circuits:
            self.monitor = Monitor(plan, self._config.circuits, self._share, self._source, self.ticks)
            if before is not None:
                self.monitor.succeed(before)
            elif self.remembered is not None:
                self.monitor = self._recall(plan, self.monitor, self.remembered)
            self.remembered = None
            self.monitor.look(self._clock.unix_ns() / 1e9)
        elif before is not None:
            before.close()

    def _recall(self, plan: Plan, monitor: Monitor, known: Remembered) -> Monitor:
        """Go on from what a worker before this one knew; what is unsound is forgotten as a whole, and keeps no engine out."""
        try:
            self.detectors_resumed = monitor.recall(known, self._clock.unix_ns() / 1e9)
        except ValueError:
            self.detectors_resumed = 0
            return Monitor(plan, self._config.circuits, self._share, self._source, self.ticks)
        return monitor

    def introduce(self, report: TrafficReport) -> None:
        """An admitted engine, with what it had computed before."""
        self.coverage.register(report)

    # batches

    def arrive(self) -> None:
        """A step batch came in: it is in flight until ``submit``, ``reject`` or ``abandon`` books its outcome."""
        self.books.receive()

    def submit(self, batch: StepBatch, arrival: Arrival, report: TrafficReport | None = None) -> Result:
        """Take a decoded batch to its outcome and book it. ``settle`` must be called once the reply is written.

        report: the engine's own count up to this batch, taken in unless the batch is refused.
        An exception that is neither Rejected nor Dropped is a bug: the batch is booked as dropped{internal}, and it is raised.
        """
        decoded_s = self._clock.monotonic_s()
        self.books.decoded(batch)
        try:
            made = self._score(batch, arrival)
        except Rejected as rejected:
            self._unread(batch, rejected.reason)
            return self.books.reject(batch, rejected)
        except Dropped as dropped:
            self._unread(batch, dropped.reason)
            made = self.books.drop(batch, dropped.reason)
        except Exception:
            self.books.drop(batch, DropReason.INTERNAL)
            raise
        if made.scored:
            self._step(self.timings.scored(batch, arrival, decoded_s), arrival)
        if report is not None and self.coverage.knows(report.engine_id):
            self.coverage.report(report)
        return made

    def _unread(self, batch: StepBatch, reason: RejectReason | DropReason) -> None:
        if self.monitor is not None and reason in _NO_NUMBERS:
            self.monitor.refuse(batch)

    def _score(self, batch: StepBatch, arrival: Arrival) -> Result:
        plan, judge = self._admitted(batch)
        self._in_time(batch, judge, arrival)
        with self.timings.of(Stage.READ):
            self.others.begin(self._until_s(batch, arrival))
            readings = read(plan, batch, self.kernels, self._shed, self.others)
        self._take(batch, judge, arrival)
        self.coverage.saw(batch.engine_id, readings.taps)
        if not readings.rows_scored:
            raise Dropped(_why_nothing(readings))
        with self.timings.of(Stage.JUDGE):
            verdicts = judge.judge(readings, batch)
        took_s = self._clock.monotonic_s() - arrival.posted_s
        self.books.score(readings, verdicts, late=bool(batch.verdict_within_s) and took_s > batch.verdict_within_s)
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
        self.timings.waited(arrival)
        judge.finish(batch.engine_id, batch.finished)

    def reject(self, rejected: Rejected, batch_id: BatchId = NO_ID) -> Result:
        """End a message that could not be decoded."""
        return self.books.reject_undecoded(rejected, batch_id)

    def abandon(self) -> Result:
        """End a message whose decoding ran into a bug of ours."""
        return self.books.abandon()

    def settle(self) -> None:
        """Account for batches whose replies are written, and end requests that went quiet."""
        self._settle_all()
        if self.monitor is not None:
            self.monitor.look(self._clock.unix_ns() / 1e9)
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
                with self.timings.of(Stage.ACCOUNT):
                    self.judge.account(readings, batch, every)
            if self.monitor is not None and readings.circuits is not None:
                self._sketch(self.monitor, readings, batch)
                self.canaries.add(readings.plan, readings.circuits, batch.segments)

    def _sketch(self, monitor: Monitor, readings: Readings, batch: StepBatch) -> None:
        if self.effects.sketches:
            with self.timings.of(Stage.SKETCH):
                monitor.account(readings, batch)
        else:
            monitor.leave_out(batch)

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
        if self.monitor is not None:
            self.monitor.close()
        if self.judge is not None:
            self.judge.end_all("shutdown")

    def close(self) -> None:
        """Nothing comes any more. The ledger is not to be used after this."""
        self.others.stop()
        self.books.ledger.close()

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
