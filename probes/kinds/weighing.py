"""What each text counts for in a fit: both classes the same, and many near-duplicates little more than one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from sidecar.types import BoolArray

Array = npt.NDArray[np.float64]


def text_weights(labels: BoolArray, groups: Sequence[str] | None = None) -> Array:
    """Return float64 [texts], with a mean of 1; each class has half of it, where n texts of a group count as sqrt(n).

    groups: what texts belong to, near-duplicates or a common source: neither n independent texts nor one. An empty name, or
    None for all: a text is its own group. Raises LabError if there is not one name a text.

    >>> text_weights(np.array([True, False, False, False, False, False]), ["", "b", "b", "b", "b", ""]).tolist()
    [3.0, 0.5, 0.5, 0.5, 0.5, 1.0]
    """
    if groups is None:
        groups = [""] * len(labels)
    if len(groups) != len(labels):
        raise LabError(f"there are {len(labels)} texts and {len(groups)} groups")
    found = np.ones(len(labels))
    for of_class in (labels, ~labels):
        rows = np.flatnonzero(of_class).tolist()
        sizes = Counter(groups[row] for row in rows)
        found[rows] = [sizes[groups[row]] ** -0.5 if groups[row] else 1.0 for row in rows]
        found[rows] *= len(labels) / 2 / found[rows].sum()
    return found
