"""Texts that lie end to end, and every window of their consecutive rows, as index arrays: whole batches are worked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Window w is the rows first[w] .. first[w] + size[w] - 1 of text owner[w]; a text shorter than a window has one, itself.

    starts: [G], where each text's windows begin; stop: how many rows there are.
    """

    first: IndexArray  # [W]
    size: IndexArray  # [W]
    owner: IndexArray  # [W]
    starts: IndexArray  # [G]
    stop: int

    @classmethod
    def of(cls, starts: IndexArray, stop: int, length: int) -> Self:
        """All windows of ``length`` rows over texts that begin at ``starts`` in ``stop`` rows.

        >>> Windows.of(np.array([0, 4]), 6, 3).first.tolist()
        [0, 1, 4]
        """
        rows = np.diff(starts, append=stop)
        counts = np.maximum(rows - length + 1, 1)
        places = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(starts)), counts)
        first = starts[owner] + np.arange(counts.sum()) - places[owner]
        return cls(first, np.minimum(rows, length)[owner], owner, places, stop)

    def means(self, readings: Array) -> Array:
        """Mean of each window, [W], of readings [t]."""
        sums = np.concatenate([[0.0], np.cumsum(readings)])
        return np.asarray((sums[self.first + self.size] - sums[self.first]) / self.size)

    def spread(self, pulls: Array) -> Array:
        """Give each window's pull back to its rows, [W] to [t]: the transpose of `means`."""
        edges = np.zeros(self.stop + 1)
        edges[self.first] += pulls / self.size
        edges[self.first + self.size] -= pulls / self.size
        return np.cumsum(edges)[:-1]

    def cells(self) -> tuple[IndexArray, BoolArray]:
        """Return the rows of each window, [W, length], and which of the cells are rows: a short text's last ones are not."""
        reach = np.arange(int(self.size.max()))
        inside = reach < self.size[:, None]
        return np.where(inside, self.first[:, None] + reach, 0), inside

    def best(self, values: Array) -> tuple[Array, IndexArray]:
        """Each text's highest value of its windows, [G], and which window has it (the first of equals)."""
        highest = np.maximum.reduceat(values, self.starts)
        hits = np.flatnonzero(values == highest[self.owner])
        _, one = np.unique(self.owner[hits], return_index=True)
        return highest, hits[one]


class Spans:
    """Where texts begin in rows that lie end to end; their windows are worked out once for each length.

    starts: [G]; stop: how many rows there are.
    """

    def __init__(self, starts: IndexArray, stop: int) -> None:
        self.starts = starts
        self.stop = stop
        self._windows: dict[int, Windows] = {}

    def __len__(self) -> int:
        return len(self.starts)

    def windows(self, length: int) -> Windows:
        """All windows of ``length`` rows. A fit asks for the same ones at every step."""
        if length not in self._windows:
            self._windows[length] = Windows.of(self.starts, self.stop, length)
        return self._windows[length]

    @property
    def owner(self) -> IndexArray:
        """The text that each row is of, [stop]."""
        return self.windows(1).owner
