"""How long batches wait and take, beside the budget that they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.clock import Clock
from sidecar.config import Budget
from sidecar.judge.tally import SECONDS_EDGES, SHARE_EDGES, Tally
from sidecar.outcome import Arrival
from sidecar.snapshot import Stage
from sidecar.types import StepBatch


class Timings:
    """Histograms of seconds by stage, of waits, and of the budget's use. Owned by the pipeline's thread."""

    def __init__(self, budget: Budget, clock: Clock) -> None:
        self.stages = {stage: Tally(SECONDS_EDGES) for stage in Stage}
        self.budget_use = Tally(SHARE_EDGES)
        self.queue_age = Tally(SECONDS_EDGES)
        self._budget = budget
        self._clock = clock

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        """Time what is done inside; what fails is no measurement."""
        start_s = self._clock.monotonic_s()
        yield
        self.stages[stage].add(self._clock.monotonic_s() - start_s)

    def waited(self, arrival: Arrival) -> None:
        """A batch that is not refused had its turn."""
        self.queue_age.add(arrival.waited_s)

    def scored(self, batch: StepBatch, arrival: Arrival, decoded_s: float) -> float:
        """Take in a scored batch's way; returns its budget use: from the last byte to the verdict is what the budget is about."""
        self.stages[Stage.WAIT].add(arrival.waited_s)
        self.stages[Stage.DECODE].add(decoded_s - arrival.taken_s)
        allowed_s = self._budget.step_ms / 1e3 * max(1.0, batch.row_count / self._budget.rows)
        use = (self._clock.monotonic_s() - arrival.posted_s) / allowed_s
        self.budget_use.add(use)
        return use
