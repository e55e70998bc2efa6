"""One figure of the table, and the interval that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Line = Sequence[float] | npt.NDArray[np.float64]
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """``goal`` and ``met`` are None for a figure that is reported and not aimed at. ``interval`` is 95 %."""

    name: str
    value: float
    goal: str | None = None
    met: bool | None = None
    interval: tuple[float, float] | None = None
    note: str = ""

    def at_most(self, limit: float) -> Row:
        """The claim is the value itself: met if it is not above the limit."""
        return replace(self, goal=f"<= {limit:g}", met=self.value <= limit)

    def at_least(self, limit: float, stretch: float | None = None) -> Row:
        """Met if the value is not below the limit; the stretch is shown and not judged."""
        goal = f">= {limit:g}" + ("" if stretch is None else f" (stretch {stretch:g})")
        return replace(self, goal=goal, met=self.value >= limit)


@dataclass(frozen=True, slots=True)
class RowOfRounds(Row):
    """``rounds``: what it was made of, a value a round under the name of each side."""

    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)


def median_interval(values: Line, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The median and its 95 % bootstrap interval over rounds.

    >>> median_interval([2.0, 2.0, 2.0])
    (2.0, (2.0, 2.0))
    """
    line = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).choice(line, size=(_RESAMPLES, len(line)))
    low, high = np.quantile(np.median(picks, axis=1), (0.025, 0.975))
    return float(np.median(line)), (float(low), float(high))


def ratio(name: str, over: Line, under: Line, note: str = "") -> Row:
    """over / under, round by round: what the machine was busy with in a round, it was busy with for both."""
    value, interval = median_interval(np.asarray(over, dtype=np.float64) / np.asarray(under, dtype=np.float64))
    return Row(name, value, interval=interval, note=note)


def ratio_of_rounds(name: str, over: Line, under: Line, sides: tuple[str, str], note: str = "") -> RowOfRounds:
    """The same, with the rounds kept. sides: what ``over`` and ``under`` are, with their units."""
    found = ratio(name, over, under, note)
    kept = {side: [float(one) for one in line] for side, line in zip(sides, (over, under), strict=True)}
    return RowOfRounds(name, found.value, interval=found.interval, note=note, rounds=kept)


def write(machine: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """A list of rows; the first one is the machine that they are of."""
    path.write_text(json.dumps([machine_row(machine), *map(asdict, rows)], indent=2) + "\n", encoding="utf-8")


def machine_row(machine: dict[str, Any]) -> dict[str, Any]:
    return {"name": "machine", "value": machine, "goal": None, "met": None, "interval": None, "note": ""}
