"""One figure of a benchmark, and the intervals that belong to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Row:
    """``goal`` and ``met`` are None for a figure that is reported and not aimed at. ``interval`` is 95 %."""

    name: str
    value: float
    goal: str | None = None
    met: bool | None = None
    interval: tuple[float, float] | None = None
    note: str = ""


def median_interval(
    values: Sequence[float] | npt.NDArray[np.float64], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The median and its 95 % bootstrap interval (2,000 resamples of the paired rounds)."""
    line = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(line, size=(2000, len(line))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(line)), (float(low), float(high))


def ratio_row(name: str, ours: Sequence[float], theirs: Sequence[float], note: str = "") -> Row:
    """ours / theirs, round by round, without a goal."""
    value, interval = median_interval(np.asarray(ours) / np.asarray(theirs))
    return Row(name, value, interval=interval, note=note)


def at_most(row: Row, limit: float) -> Row:
    """The whole claim is the value: met if it is not above the limit."""
    return Row(row.name, row.value, f"<= {limit:g}", row.value <= limit, row.interval, row.note)


def write(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
