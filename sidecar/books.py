"""The one place where a batch's outcome is booked: in the ledger, and in what was said of its requests."""

from __future__ import annotations

from sidecar.errors import DropReason, Rejected
from sidecar.judge.verdict import Verdict
from sidecar.ledger import Ledger
from sidecar.outcome import NO_ID, Result
from sidecar.reading.read import Readings
from sidecar.types import Action, BatchId, StepBatch


class Books:
    """Every batch that was received is booked once: scored, dropped or rejected. Owned by the pipeline's thread.

    at_deadline: what is said of requests whose batch was not read while somebody waits.
    """

    def __init__(self, ledger: Ledger, at_deadline: Action) -> None:
        self.ledger = ledger
        self.verdicts = dict.fromkeys(Action, 0)
        self.verdicts_late = 0
        self.projections_checked = self.projections_wrong = 0
        self._at_deadline = at_deadline

    def receive(self) -> None:
        """A step batch is in flight, and nothing is known of it yet."""
        self.ledger.step_batches.receive(1)

    def decoded(self, batch: StepBatch) -> None:
        """It has rows."""
        self.ledger.rows.receive(batch.row_count)

    def score(self, readings: Readings, verdicts: tuple[Verdict, ...], *, late: bool) -> None:
        """Some of its rows at least were scored. late: whoever waited has helped himself by now."""
        rows = self.ledger.rows
        rows.score(readings.rows_scored)
        rows.drop(DropReason.NO_PLAN, readings.rows_without_plan)
        rows.drop(DropReason.LADDER, readings.rows_shed)
        rows.drop(DropReason.DEADLINE, readings.rows_late)
        rows.drop(DropReason.SCORE_NON_FINITE, sum(tap.non_finite_rows for tap in readings.taps))
        self.ledger.step_batches.score(1)
        self.projections_checked += sum(tap.checked_rows for tap in readings.taps)
        self.projections_wrong += sum(tap.wrong_rows for tap in readings.taps)
        for verdict in verdicts:
            self.verdicts[verdict.action] += 1
        self.verdicts_late += len(verdicts) if late else 0

    def drop(self, batch: StepBatch, reason: DropReason) -> Result:
        self.ledger.step_batches.drop(reason, 1)
        self.ledger.rows.drop(reason, batch.row_count)
        if not batch.verdict_within_s or reason is DropReason.DUPLICATE:
            return Result(batch.batch_id, False, reason)
        verdicts = tuple(Verdict(one, self._at_deadline) for one in batch.segments.request_ids)
        self.verdicts_late += len(verdicts)
        self.verdicts[self._at_deadline] += len(verdicts)
        return Result(batch.batch_id, False, reason, verdicts=verdicts, late=True)

    def reject(self, batch: StepBatch, rejected: Rejected) -> Result:
        self.ledger.rows.reject(rejected.reason, batch.row_count)
        return self.reject_undecoded(rejected, batch.batch_id)

    def reject_undecoded(self, rejected: Rejected, batch_id: BatchId = NO_ID) -> Result:
        """A message that could not be decoded: it had no rows that could be counted."""
        self.ledger.step_batches.reject(rejected.reason, 1)
        return Result(batch_id, False, rejected.reason, rejected.field)

    def abandon(self) -> Result:
        """A message whose decoding ran into a bug of ours: it had no rows that could be counted."""
        self.ledger.step_batches.drop(DropReason.INTERNAL, 1)
        return Result(NO_ID, False, DropReason.INTERNAL)
