"""Probes that learn where to look: trained through the very score that they are served with."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from probes.kinds.base import POOLED, ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES, Directions, Passes, descend
from probes.kinds.logistic import fit_pooled
from probes.kinds.losses import Loss, RollingAttention, attention, multimax
from probes.kinds.rows import Texts, pooled
from probes.manifest import Aggregation, AggregationKind
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
# Steps of L-BFGS. Further ones learn the training texts by heart: on SST-2 (300 texts, SmolLM2 block 14) attention had a held-out
# AUROC of .91 after 30 and of .87 after 60, multimax .83 and .86.
_STEPS = 30
_NOISE = 1e-2  # of a start's directions over standardised coordinates: columns that begin alike would stay alike


class Through(ProbeEstimator):
    """Logistic loss of the aggregated score, followed down by L-BFGS from the logistic probe on means.

    The score is not convex in its directions: another ``seed`` may end in another of several good optima. strength: scikit-
    learn's C over standardised coordinates, for all columns. memory_bytes: of states held between the passes over X; more are
    read again.
    """

    seed: int
    memory_bytes: int

    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        passes = Passes(texts, memory_bytes=self.memory_bytes)
        mean = fit_pooled(pooled(texts, POOLED[0], passes.width), labels, weights, self.strength)
        value, offset = passes.scale.unfold(mean)
        shares = self._shares()
        noise = np.random.default_rng(self.seed).normal(size=(passes.width, len(shares))) * _NOISE
        start = passes.scale.fold(value * shares + noise, offset * shares)
        return descend(passes, labels, weights, self._loss(), start, strength=self.strength, steps=_STEPS)

    @abstractmethod
    def _shares(self) -> Array:
        """How much of the probe on means each column begins with, [K]."""

    @abstractmethod
    def _loss(self) -> Loss: ...


class Attention(Through):
    """One softmax over all of a text's tokens: sum exp(q_i) v_i / sum exp(q_i), value and query learnt (2506.10805, 2601.11516).

    It begins as mean pooling, every query 0.
    """

    accepts: ClassVar[frozenset[AggregationKind]] = frozenset({AggregationKind.ATTENTION})
    aggregations: ClassVar[tuple[Aggregation, ...]] = (Aggregation(kind=AggregationKind.ATTENTION),)
    strengths: ClassVar[tuple[float, ...]] = (0.001, 0.01, 0.1)

    def __init__(
        self,
        aggregation: Aggregation = aggregations[0],
        strength: float = 0.01,
        seed: int = 0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.aggregation = aggregation
        self.strength = strength
        self.seed = seed
        self.memory_bytes = memory_bytes

    def _shares(self) -> Array:
        return np.array([1.0, 0.0])

    def _loss(self) -> Loss:
        return attention


class MaxRollingAttention(Attention):
    """The highest attention over ``aggregation.window`` tokens in a row: a long text does not dilute it (arXiv 2601.11516)."""

    accepts: ClassVar[frozenset[AggregationKind]] = frozenset({AggregationKind.MAX_ROLLING_ATTENTION})
    aggregations: ClassVar[tuple[Aggregation, ...]] = (Aggregation(kind=AggregationKind.MAX_ROLLING_ATTENTION),)

    def __init__(
        self,
        aggregation: Aggregation = aggregations[0],
        strength: float = 0.01,
        seed: int = 0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(aggregation, strength, seed, memory_bytes)

    def _loss(self) -> Loss:
        return RollingAttention(self.aggregation.window)


class Multimax(Through):
    """The sum of several heads' highest readings: each finds a token of its own (arXiv 2601.11516)."""

    accepts: ClassVar[frozenset[AggregationKind]] = frozenset({AggregationKind.MULTIMAX})
    aggregations: ClassVar[tuple[Aggregation, ...]] = (
        Aggregation(kind=AggregationKind.MULTIMAX, heads=1),
        Aggregation(kind=AggregationKind.MULTIMAX, heads=4),
    )
    strengths: ClassVar[tuple[float, ...]] = (0.001, 0.01, 0.1)

    def __init__(
        self,
        aggregation: Aggregation = aggregations[1],
        strength: float = 0.01,
        seed: int = 0,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.aggregation = aggregation
        self.strength = strength
        self.seed = seed
        self.memory_bytes = memory_bytes

    def _shares(self) -> Array:
        heads = self.aggregation.heads
        return np.full(heads, 1.0 / heads)

    def _loss(self) -> Loss:
        return multimax
