"""Logistic regression on every token, or on every window of tokens, each labelled as its text: then the highest reading speaks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from probes.kinds.base import ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES, Directions, Passes, descend
from probes.kinds.logistic import ONE_COLUMN
from probes.kinds.losses import OverTokens
from probes.kinds.rows import Texts
from probes.manifest import Aggregation, AggregationKind
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]
_SMOOTHED = frozenset({AggregationKind.EMA, AggregationKind.MAX_EMA, AggregationKind.MAX_ROLLING_MEAN})


class Token(ProbeEstimator):
    """Every token, or window of tokens, should tell the class of its text; within a text all weigh the same. Convex.

    Trained on means of ``aggregation.window`` tokens in a row if it is scored by rolling or exponential means (as arXiv
    2601.04603 does for the latter), else on single tokens. strength: scikit-learn's C, over standardised coordinates.
    memory_bytes: of states held between the passes over X; more are read again.
    """

    accepts: ClassVar[frozenset[AggregationKind]] = ONE_COLUMN
    aggregations: ClassVar[tuple[Aggregation, ...]] = (
        Aggregation(kind=AggregationKind.MAX_EMA),
        Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN),
    )
    strengths: ClassVar[tuple[float, ...]] = (0.01, 0.1)  # each text has many rows: a weaker hold is enough
    _sharpness: ClassVar[float] = 0.0

    def __init__(
        self,
        aggregation: Aggregation = aggregations[0],
        strength: float = 0.01,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.aggregation = aggregation
        self.strength = strength
        self.memory_bytes = memory_bytes

    def _directions(self, texts: Texts, labels: BoolArray, weights: Array) -> Directions:
        passes = Passes(texts, memory_bytes=self.memory_bytes)
        window = self.aggregation.window if self.aggregation.kind in _SMOOTHED else 1
        found = Directions(np.zeros((passes.width, 1)), np.zeros(1))
        for sharpness in sorted({0.0, self._sharpness}):
            loss = OverTokens(window, sharpness)
            found = descend(passes, labels, weights, loss, found, strength=self.strength)
        return found


class SoftmaxToken(Token):
    """The same, but a text's most telling windows teach the most: weighted by exp(their own reading) (arXiv 2601.04603).

    What few of a text's tokens show is not drowned by its others. Not convex: it starts where `Token` ends.
    """

    _sharpness: ClassVar[float] = 1.0


class Coherence(Token):
    """Trained on single tokens, scored by what ``agree`` of ``window`` tokens in a row all reach (arXiv 2604.14865).

    One token that reads high, a typing error or a rare name, does not make it fire.
    """

    accepts: ClassVar[frozenset[AggregationKind]] = frozenset({AggregationKind.COHERENCE})
    aggregations: ClassVar[tuple[Aggregation, ...]] = (
        Aggregation(kind=AggregationKind.COHERENCE, window=10, agree=3),
        Aggregation(kind=AggregationKind.COHERENCE, window=10, agree=6),
    )

    def __init__(
        self,
        aggregation: Aggregation = aggregations[0],
        strength: float = 0.01,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        super().__init__(aggregation, strength, memory_bytes)
