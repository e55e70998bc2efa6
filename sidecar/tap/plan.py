"""The plan as a tap holds it: the directions by which captured rows are multiplied where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.types import FloatArray, TapPoint


@dataclass(frozen=True, slots=True, eq=False)
class PointPlan:
    """The directions of one tap point. The sidecar adds the offsets, which are its own."""

    columns: tuple[str, ...]  # K names
    directions: FloatArray  # [D, K], read-only


@dataclass(frozen=True, slots=True, eq=False)
class FetchedPlan:
    """One generation, whole. Whoever works by it holds on to this object: the next one replaces it, and never changes it."""

    generation: int
    points: Mapping[TapPoint, PointPlan]
