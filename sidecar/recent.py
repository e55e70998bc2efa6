"""Which batches were seen already."""

from __future__ import annotations

from collections import OrderedDict

from sidecar.types import BatchId, EngineId, StepBatch


class RecentIds:
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
