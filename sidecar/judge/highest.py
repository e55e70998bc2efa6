"""How high the score has ever been: what every kind keeps that is a maximum over a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from sidecar.judge.kinds import CountArray, DoubleArray
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, IndexArray


class Highest:
    """The highest score so far of M signals, by slot. What it is the highest of is the subclass's."""

    def __init__(self, signals: Sequence[Signal], slots: int) -> None:
        self._best: DoubleArray = np.zeros((slots, len(signals)))

    def _raise(self, slots: IndexArray, now: DoubleArray, begun: BoolArray, valid: BoolArray | None) -> None:
        """Take in the newest scores [G, M]: as they are until ``begun``, then only where they are higher; valid: as for ``one``."""
        best: DoubleArray = self._best.take(slots, axis=0)
        new = np.where(begun, np.maximum(best, now), now)
        if valid is not None:
            np.copyto(new, best, where=~valid)
        self._best[slots] = new

    def scores(self, slots: IndexArray, counts: CountArray) -> DoubleArray:
        del counts
        made: DoubleArray = self._best.take(slots, axis=0)
        return made

    def reset(self, slot: int) -> None:
        self._best[slot] = 0.0

    def take(self, other: Self, old: int, new: int, slots: IndexArray) -> None:
        self._best[slots, new] = other._best[slots, old]
