"""How well a score parts two classes: the one number that every stage of the lab compares by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sidecar.types import BoolArray


def auroc(scores: npt.NDArray[np.float64], labels: BoolArray) -> float:
    """Return the chance that a positive's score lies above a negative's, ties counting half (Mann and Whitney, 1947).

    scores: [n]; labels: [n]. O(n log n). Raises ValueError if either class is missing.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError("AUROC needs both classes")
    ranks = float(rankdata(scores)[labels].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
