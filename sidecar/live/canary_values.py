"""From a plan and the rows of its canaries to the numbers that are compared: activities of circuits, fingerprints of tap points."""

from __future__ import annotations

import numpy as np

from sidecar.circuits.activity import SINKS, Reader, Rows
from sidecar.circuits.circuit import Bank
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

    def of(self, row: CanaryRow) -> FloatArray:
        """One row's numbers; NaN where it was not read. An activity that is not finite is NaN."""
        readings = row.values[: self._places][None]
        at = np.zeros(1, np.intp)
        activity = self._reader.read(Rows(readings, np.full(1, SINKS, np.uint32), at, at, ("",)))
        nodes = np.where(activity.sound[self._bank.circuit_of], activity.nodes, np.nan)[:, 0]
        made: FloatArray = np.concatenate((nodes, row.values[self._places :])).astype(np.float32)
        return made


def circuit_group(name: str, spec_hash: str) -> str:
    """What a circuit's activities are called among the groups: another spec is another quantity."""
    return _named(name, spec_hash)


def _named(name: str, spec_hash: str) -> str:
    return f"{name}@{spec_hash[:_DIGITS]}"
