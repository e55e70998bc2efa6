"""From a plan and the rows of its canaries to the numbers that are compared: activities of circuits, fingerprints of tap points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sidecar.circuits.activity import SINKS, Reader, Rows
from sidecar.circuits.canary import AGREE, Round, moved
from sidecar.circuits.circuit import Bank
from sidecar.live.alarms import Canaries
from sidecar.live.canary_rows import CanaryRow, taps_of
from sidecar.reading.canary import SIZE
from sidecar.reading.plan import Plan
from sidecar.types import FloatArray, TapPoint

_DIGITS = 12


class PlanValues:
    """The groups of one plan: every circuit's activities, then every tap point's fingerprint."""

    def __init__(self, plan: Plan) -> None:
        self._places = plan.circuit_places
        self._bank = Bank(tuple(one.circuit for one in plan.circuits))
        self._reader = Reader(self._bank)
        self.circuits = {_named(one.circuit.name, one.circuit.spec_hash): one.name for one in plan.circuits}
        self.taps: dict[str, TapPoint] = {where.name: where for where in taps_of(plan)}
        sizes = [(name, len(one.nodes), False) for name, one in zip(self.circuits, self._bank.circuits, strict=True)]
        self.groups = (*sizes, *((name, SIZE, True) for name in self.taps))

    def of(self, rows: Sequence[CanaryRow]) -> FloatArray:
        """[rows, numbers]; NaN where it was not read. An activity that is not finite is NaN."""
        values = np.stack([row.values for row in rows])
        at = np.zeros(len(rows), np.intp)
        behind = np.full(len(rows), SINKS, np.uint32)
        activity = self._reader.read(Rows(values[:, : self._places], behind, at, at, ("",)))
        nodes = np.where(activity.sound[self._bank.circuit_of], activity.nodes, np.nan)
        made: FloatArray = np.concatenate((nodes.T, values[:, self._places :]), axis=1, dtype=np.float32)
        return made


def circuit_group(name: str, spec_hash: str) -> str:
    """What a circuit's activities are called among the groups: another spec is another quantity."""
    return _named(name, spec_hash)


def says(rounds: Sequence[Round], group: str, limit: float) -> Canaries:
    """What the newest rounds say of one circuit: nothing, unless two of them read it. Quiet are those that read all there is."""
    newest = [one for one in rounds if one.enough][-AGREE:]
    if len(newest) < AGREE or any(math.isnan(one.distances.get(group, math.nan)) for one in newest):
        return Canaries.SILENT
    found = moved(newest, limit)
    if found:
        return Canaries.MOVED if group in found else Canaries.MOVED_ELSEWHERE
    return Canaries.QUIET if all(one.whole for one in newest) else Canaries.SILENT


def _named(name: str, spec_hash: str) -> str:
    return f"{name}@{spec_hash[:_DIGITS]}"
