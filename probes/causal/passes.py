"""Forward passes over all prompts: each done once and kept on disk, within a budget of time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.causal.edits import Edits

Array = npt.NDArray[np.float64]


class OutOfTimeError(Exception):
    """The budget is spent. What is done is kept: the same command goes on from there."""


class Passes:
    """``run``: a pass with edits. ``kept``: a file of finished passes, of use only to runs with the same ``settings``.

    budget_s: counts from now. tick: called once for every pass asked for, done before or not.
    """

    def __init__(
        self,
        run: Callable[[Edits], Array],
        kept: Path,
        settings: str,
        budget_s: float,
        *,
        tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._kept = kept
        self._settings = settings
        self._tick = tick
        self._clock = clock
        self._until = clock() + budget_s
        self._slowest_s = 0.0
        self._done: dict[str, Array] = {}

    def load(self) -> int:
        """Take up what an earlier run with the same settings left; returns how many passes. Anything else is forgotten."""
        lines = self._kept.read_text(encoding="utf-8").splitlines() if self._kept.exists() else []
        told = [found for line in lines if (found := _parsed(line)) is not None]
        if told and told[0].get("settings") == self._settings:
            self._done = {one["pass"]: np.array(one["log_odds"]) for one in told[1:]}
        with self._kept.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"settings": self._settings}) + "\n")
            file.writelines(_line(key, odds) for key, odds in self._done.items())
        return len(self._done)

    def affords(self, keys: Iterable[str]) -> bool:
        """Whether there is time for these passes, if each takes as long as the slowest did."""
        missing = sum(key not in self._done for key in keys)
        return not missing or self._clock() + missing * self._slowest_s < self._until

    def __call__(self, key: str, edits: Callable[[], Edits]) -> Array:
        """Log-odds [prompts] under edits, which are made only if they are needed. Raises OutOfTimeError before a pass."""
        if key not in self._done:
            started = self._clock()
            if started >= self._until:
                raise OutOfTimeError
            found = self._run(edits())
            self._slowest_s = max(self._slowest_s, self._clock() - started)
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(_line(key, found))
            self._done[key] = found
        self._tick()
        return self._done[key]

    def forget(self) -> None:
        """All is done: the file is of no more use."""
        self._kept.unlink(missing_ok=True)


def _line(key: str, odds: Array) -> str:
    return json.dumps({"pass": key, "log_odds": odds.tolist()}) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    """A line cut short by a kill is no line."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
