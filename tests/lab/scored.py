"""Scored rows as tests of measures and of intervals want them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from probes.quality.bootstrap import Resamples

# Few distinct scores, so that ties are common; both labels are there.
SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def arrays(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, [n] each."""
    return np.array([float(score) for score, _ in rows]), np.array([label for _, label in rows])


def plain(labels: np.ndarray, seed: int = 0) -> Resamples:
    """Every row is a group of its own."""
    return Resamples(labels, np.arange(len(labels)), seed)
