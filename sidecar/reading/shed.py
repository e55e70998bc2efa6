"""What is not read while the sidecar is short of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.reading.plan import Plan, TapPlan
from sidecar.types import BoolArray, PositionArray, TapPoint

_GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio
_ALL = 1 << 32


@dataclass(frozen=True, slots=True)
class Shed:
    """Of ``tap_points`` nothing is read, of the others one token in ``stride``. A plan's verdict taps are read in full.

    Which tokens is decided by their position, so all layers agree, every request is thinned alike, and a reading stands for
    ``stride`` of its kind. The newest row of a request is no exception: in a decode step every row is the newest.
    """

    stride: int = 1
    tap_points: frozenset[TapPoint] = frozenset()

    def keeps(self, positions: PositionArray) -> BoolArray | None:
        """[T], which tokens are read; None if all of them are.

        Position p is kept if frac(p / golden ratio) < 1 / stride: every ``stride``-th in the long run, at nearly even
        distances, also of positions that a tap has thinned with a stride of its own (``p % stride`` would keep all or none).

        >>> np.flatnonzero(Shed(stride=4).keeps(np.arange(24, dtype=np.uint32)))
        array([ 0,  2,  5, 10, 13, 18, 23])
        """
        if self.stride == 1:
            return None
        kept: BoolArray = positions * _GOLDEN < _ALL // self.stride
        return kept

    def thins(self, plan: Plan, tap_plan: TapPlan) -> bool:
        """Whether anything of the tap point may be left out."""
        return self != FULL and tap_plan.tap_point not in plan.verdict_taps

    def weights(self, plan: Plan) -> npt.NDArray[np.int64]:
        """[S], how many tokens a reading of each signal stands for."""
        made = np.full(len(plan.signals), self.stride, dtype=np.int64)
        for where in plan.verdict_taps:
            if where in plan.taps:
                made[plan.taps[where].signals] = 1
        return made


FULL = Shed()
