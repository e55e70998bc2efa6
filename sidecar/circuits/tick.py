"""What is known of one circuit in one slice and one tick: integers that add. Nothing in it says who wrote what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.circuits.circuit import BINS

Counts = npt.NDArray[np.int64]
# Single counts, in the order in which they stand first: rows sketched; of them engaged; left out for a value that is no number;
# activities clipped; left out as attention sinks; sessions that ended without enough tokens to bet.
SINGLE = ("rows", "engaged", "non_finite", "clipped", "sinks", "short")
PARTS = ("sums", "squares", "pairs", "scores", "evidence")


@dataclass(frozen=True, slots=True)
class Shape:
    """How many integers there are: of n nodes, and of bets of k tokens.

    >>> Shape(8, 4).width
    127
    """

    nodes: int
    tokens: int

    @property
    def sizes(self) -> tuple[int, ...]:
        n = self.nodes
        return (len(SINGLE), n, n, n * (n + 1) // 2, BINS, self.tokens + 1)

    @property
    def width(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True, slots=True, order=True)
class TickKey:
    """What a sketch is of. Ticks count ``tick_s`` seconds from the epoch."""

    model_hash: str
    spec_hash: str
    circuit: str
    slice: str
    tick_s: int
    tick: int

    @property
    def at_s(self) -> int:
        """When the tick began, in seconds since the epoch."""
        return self.tick * self.tick_s


@dataclass(frozen=True, slots=True, eq=False)
class TickRow:
    """The sketch of one circuit, slice and tick. sources: the processes whose counts are in it, sorted.

    A source is one run of one replica: a replica that started anew within a tick is another source of that tick.
    """

    key: TickKey
    sources: tuple[str, ...]
    shape: Shape
    counts: Counts  # [shape.width]: the single counts, then the parts

    def __post_init__(self) -> None:
        if self.counts.shape != (self.shape.width,) or self.counts.dtype != np.int64:
            raise ValueError(f"{self.key.circuit}: want {self.shape.width} int64")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TickRow)
            and (self.key, self.sources, self.shape) == (other.key, other.sources, other.shape)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]  # equal by arrays

    def single(self, name: str) -> int:
        return int(self.counts[SINGLE.index(name)])

    def part(self, name: str) -> Counts:
        """sums, squares: [n], of activities in 256ths. pairs: upper triangle, row by row. scores: [64]. evidence: [k+1]."""
        edges = np.cumsum((0, *self.shape.sizes))
        at = 1 + PARTS.index(name)
        return self.counts[edges[at] : edges[at + 1]]

    @property
    def evidence(self) -> Counts:
        """[k+1]: sessions that bet, by how many of their k tokens were engaged."""
        return self.part("evidence")

    @property
    def moments(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation of each node's activity; NaN without rows."""
        rows = self.single("rows") or np.nan
        mean, square = self.part("sums") / 256 / rows, self.part("squares") / 65536 / rows
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))
