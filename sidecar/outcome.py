"""When a batch came, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.errors import DropReason, RejectReason
from sidecar.judge.verdict import Verdict
from sidecar.types import BatchId

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
    late: bool = False  # nothing was read in time: the actions are the policy's for that case


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a message's last byte was here, and when its turn came; both by the clock's monotonic_s."""

    posted_s: float
    taken_s: float

    @property
    def waited_s(self) -> float:
        return max(0.0, self.taken_s - self.posted_s)
