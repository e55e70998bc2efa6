"""Passes through a model over all prompts: each done once and kept on disk, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from probes.journal import Journal

Array = npt.NDArray[np.float64]
_EditsT = TypeVar("_EditsT")  # what a pass does to the model


class OutOfTimeError(Exception):
    """The budget is spent. What is done is kept: the same command goes on from there."""


class Passes(Generic[_EditsT]):
    """``run``: a pass with edits. ``kept``: what finished passes found.

    budget_s: counts from now. tick: called once for every pass asked for, done before or not.
    """

    def __init__(
        self,
        run: Callable[[_EditsT], Array],
        kept: Journal,
        budget_s: float,
        *,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._kept = kept
        self._tick = tick
        self._clock = clock
        self._until = clock() + budget_s
        self._slowest_s = 0.0

    def affords(self, keys: Iterable[str]) -> bool:
        """Whether there is time for these passes, if each takes as long as the slowest did."""
        missing = sum(key not in self._kept for key in keys)
        return not missing or self._clock() + missing * self._slowest_s < self._until

    def __call__(self, key: str, edits: Callable[[], _EditsT]) -> Array:
        """What is found under edits, which are made only if they are needed. Raises OutOfTimeError before a pass."""
        if key not in self._kept:
            started = self._clock()
            if started >= self._until:
                raise OutOfTimeError
            found = self._run(edits())
            self._slowest_s = max(self._slowest_s, self._clock() - started)
            self._kept.add(key, found.tolist())
        self._tick()
        return np.array(self._kept[key], dtype=np.float64)
