"""How one fit is done: here, or by others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from probes.kinds.base import ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES
from probes.kinds.registry import make_estimator
from probes.kinds.rows import Texts, held
from probes.manifest import Aggregation
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train at any tap point."""

    kind: str
    aggregation: Aggregation
    strength: float

    def make(self, seed: int) -> ProbeEstimator:
        return make_estimator(self.kind, self.aggregation, self.strength, seed)


class Fitting(Protocol):
    """name: tells results of one way to fit from those of another, which may differ in the last digits."""

    name: str

    def ready(self, texts: Texts) -> Texts:
        """The same texts, as `fit` and `scores` read them best, many times."""
        ...

    def fit(self, way: Way, texts: Texts, labels: BoolArray, groups: Sequence[str], seed: int) -> ProbeEstimator:
        """Raises LabError."""
        ...

    def scores(self, fitted: ProbeEstimator, texts: Texts) -> Array:
        """What ``fitted.decision_function`` gives, float64 [texts]."""
        ...


class Here:
    """In this process, on one thread."""

    name = "here"

    def ready(self, texts: Texts) -> Texts:
        return held(texts, MEMORY_BYTES)

    def fit(self, way: Way, texts: Texts, labels: BoolArray, groups: Sequence[str], seed: int) -> ProbeEstimator:
        return way.make(seed).fit(texts, labels, groups)

    def scores(self, fitted: ProbeEstimator, texts: Texts) -> Array:
        return fitted.decision_function(texts)


HERE = Here()
