"""How far a number would move if other texts had been drawn: resamples of test rows, the same for every score that is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 2000
_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of whole groups with replacement (Field and Welsh, 2007); near-duplicates and pairs are never torn apart.

    labels: bool [n]; groups: int [n], rows with the same number are drawn together. Groups of positives alone, of negatives
    alone and of both are drawn apart, so that no class can vanish. Two scores are compared on the same draws.
    """

    labels: BoolArray
    groups: IndexArray
    seed: int

    def __iter__(self) -> Iterator[Array]:
        """How often each row was drawn, float64 [r, n], in chunks; the same each time. O(RESAMPLES * n), a chunk held."""
        random = np.random.default_rng(self.seed)
        strata = _strata(self.labels, self.groups)
        for _ in range(RESAMPLES // _AT_ONCE):
            drawn = np.empty((_AT_ONCE, len(self.labels)))
            for rows, group, count in strata:
                drawn[:, rows] = _draw(random, count)[:, group]
            yield drawn

    def interval(self, statistic: Callable[[Array], Array]) -> Interval:
        """95 % of what the statistic, of weights [r, n] to values [r], gives over all draws. NaN: a draw has no value."""
        values = np.concatenate([statistic(drawn) for drawn in self])
        low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
        return float(low), float(high)

    def auroc(self, scores: Array) -> Interval:
        """Interval of the AUROC of scores [n]."""
        ranking = Ranking.of(scores, self.labels)
        return self.interval(ranking.auroc)

    def gain(self, scores: Array, rival: Array) -> Interval:
        """Interval of by how much the AUROC of scores lies above the rival's, on the same draws."""
        own, other = Ranking.of(scores, self.labels), Ranking.of(rival, self.labels)
        return self.interval(lambda drawn: own.auroc(drawn) - other.auroc(drawn))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows in the order of their score, so that any weighting's AUROC costs O(n).

    >>> rank = Ranking.of(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    >>> rank.auroc(np.ones((1, 4))).tolist()
    [0.875]
    """

    order: IndexArray  # [n]
    ties: IndexArray  # where each distinct score begins in that order
    labels: BoolArray  # [n], in that order

    @classmethod
    def of(cls, scores: Array, labels: BoolArray) -> Ranking:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        ties = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        return cls(order, ties, labels[order])

    def pairs(self, weights: Array) -> tuple[Array, Array]:
        """Weight of the pairs in which the positive lies above (ties count half), and of all pairs; weights [r, n], each [r]."""
        drawn = weights[:, self.order]
        positives = np.add.reduceat(drawn * self.labels, self.ties, axis=1)
        negatives = np.add.reduceat(drawn * ~self.labels, self.ties, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives / 2
        return (positives * below).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1)

    def auroc(self, weights: Array) -> Array:
        """AUROC under each weighting, [r]; NaN where a class has no weight."""
        above, every = self.pairs(weights)
        return share(above, every)


def share(part: Array, whole: Array) -> Array:
    """One over the other, NaN where there is nothing."""
    found: Array = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return found


def group_numbers(names: Sequence[str]) -> IndexArray:
    """Number groups by name, int [n]; an empty name is a group of its own.

    >>> group_numbers(["a", "", "a", ""]).tolist()
    [0, 1, 0, 3]
    """
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, at) if name else at for at, name in enumerate(names)], dtype=np.intp)


def _strata(labels: BoolArray, groups: IndexArray) -> list[tuple[IndexArray, IndexArray, int]]:
    """For each kind of group: its rows, the groups that they are of counted from 0, and how many groups there are."""
    _, group = np.unique(groups, return_inverse=True)
    some = np.bincount(group, labels) > 0
    others = np.bincount(group, ~labels) > 0
    kind = np.where(some & others, 2, some)[group]  # [n]
    found = []
    for one in np.unique(kind):
        rows = np.flatnonzero(kind == one)
        names, within = np.unique(group[rows], return_inverse=True)
        found.append((rows, within, len(names)))
    return found


def _draw(random: np.random.Generator, count: int) -> Array:
    """How often each of ``count`` groups is drawn in as many draws, [_AT_ONCE, count]."""
    picked = random.integers(0, count, (_AT_ONCE, count)) + np.arange(_AT_ONCE)[:, None] * count
    return np.bincount(picked.ravel(), minlength=_AT_ONCE * count).reshape(_AT_ONCE, count).astype(np.float64)
