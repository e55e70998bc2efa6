"""Texts as plain arrays, with a truth planted along a known direction: for estimators, which need no store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sidecar.types import BoolArray, FloatArray

Rows = Literal["all", "last", "one"]


@dataclass(frozen=True)
class Planted:
    texts: list[FloatArray]
    labels: BoolArray
    direction: npt.NDArray[np.float64]

    def cosine(self, directions: FloatArray) -> float:
        """Between the planted direction and the first column."""
        first = directions[:, 0].astype(np.float64)
        return float(first @ self.direction / np.linalg.norm(first))


def planted(
    n: int = 120, *, width: int = 12, strength: float = 3.0, rows: Rows = "all", seed: int = 0, shuffled: bool = False
) -> Planted:
    """Half of the texts are positive: along the direction by ``strength`` in all rows, the last, or one at random.

    The direction is the same for the same width, whatever the seed. A text is N(0, 1/4) of its own plus N(0, 1) in each of its
    8 to 20 rows. shuffled: the labels tell nothing.
    """
    direction = np.random.default_rng([width, 77]).normal(size=width)
    direction /= np.linalg.norm(direction)
    random = np.random.default_rng([seed, 78])
    labels = np.arange(n) % 2 == 0
    texts = []
    for label in labels.tolist():
        count = int(random.integers(8, 21))
        states = random.normal(size=(count, width)) + random.normal(size=width) / 2
        at = {"all": slice(None), "last": slice(-1, None), "one": random.integers(count)}[rows]
        states[at] += strength * direction * label
        texts.append(states.astype(np.float32))
    return Planted(texts, random.permutation(labels) if shuffled else labels, direction)
