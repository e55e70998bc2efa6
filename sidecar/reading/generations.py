"""Readings that a tap made with an earlier plan, in the columns of the plan in force.

After a reload, taps send readings of the plan before until they have fetched the new one. What has not changed between the
two is used: a column is the same if it is the same column of the same artifact, by digest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sidecar.reading.plan import Plan, TapPlan
from sidecar.types import BoolArray, IndexArray


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a tap point's columns are in readings of ``width`` columns that came with an earlier plan."""

    width: int
    place: IndexArray  # [K], 0 if not there
    there: BoolArray  # [K]


def columns_of(plan: Plan, generation: int, tap_plan: TapPlan) -> Columns | None:
    """The columns of ``tap_plan`` in readings of an earlier generation.

    None if nothing of that generation is known at this tap point.
    """
    layout = plan.earlier.get(generation, {}).get(tap_plan.tap_point)
    if layout is None:
        return None
    at = {origin: place for place, origin in enumerate(layout)}
    place = np.array([at.get(origin, -1) for origin in tap_plan.origins], dtype=np.intp)
    return Columns(len(layout), np.maximum(place, 0), place >= 0)
