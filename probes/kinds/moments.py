"""Weighted count, mean and scatter of vectors: sums that may be taken apart, anywhere, and put together. Memory: O(D^2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from probes.kinds.rows import Texts, pooled_text, width_of
from probes.manifest import Aggregation
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
_BLOCK = 256  # vectors held at once


@dataclass(frozen=True, slots=True)
class Moments:
    """count: the weights' sum; mean: float64 [D]; scatter: sum of weight (x - mean)(x - mean)^T, float64 [D, D]."""

    count: float
    mean: Array
    scatter: Array

    @classmethod
    def none(cls, width: int) -> Self:
        return cls(0.0, np.zeros(width), np.zeros((width, width)))

    @classmethod
    def of(cls, vectors: Array, weights: Array) -> Self:
        """Of a block of vectors [n, D], n >= 1.

        >>> Moments.of(np.array([[1.0], [3.0]]), np.ones(2)).scatter.tolist()
        [[2.0]]
        """
        count = float(weights.sum())
        mean = weights @ vectors / count
        centred = vectors - mean
        return cls(count, mean, (centred * weights[:, None]).T @ centred)

    def merged(self, other: Moments) -> Moments:
        """Both together; about their common mean, so that large means cost no digits (Chan, Golub and LeVeque, 1979)."""
        if not self.count:
            return other
        if not other.count:
            return self
        count, shift = self.count + other.count, other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between)


@dataclass(frozen=True, slots=True)
class ClassMoments:
    """Moments of either class apart: all that a whitened difference of means needs."""

    positive: Moments
    negative: Moments

    def merged(self, other: ClassMoments) -> ClassMoments:
        return ClassMoments(self.positive.merged(other.positive), self.negative.merged(other.negative))


def class_moments(texts: Texts, labels: BoolArray, weights: Array, aggregation: Aggregation) -> ClassMoments:
    """Of the texts' pooled vectors, in one pass; only a block of vectors is held."""
    width = width_of(texts)
    return ClassMoments(
        *(
            _moments(texts, np.flatnonzero(of_class).tolist(), weights, aggregation, width)
            for of_class in (labels, ~labels)
        )
    )


def _moments(texts: Texts, rows: Sequence[int], weights: Array, aggregation: Aggregation, width: int) -> Moments:
    total = Moments.none(width)
    for at in range(0, len(rows), _BLOCK):
        block = rows[at : at + _BLOCK]
        vectors = np.stack([pooled_text(texts, row, aggregation, width) for row in block])
        total = total.merged(Moments.of(vectors, weights[block]))
    return total
