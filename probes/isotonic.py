"""An isotonic calibration: probabilities along a table that never falls. One definition, for the lab and for the service."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def along(knots: Array, scores: npt.ArrayLike) -> Array:
    """Probabilities of scores of any shape: straight between knots, flat beyond the outermost.

    knots: float64 [K, 2], (score, probability), scores rising and probabilities never falling. Of two scores the higher never
    gets less, to the last digit, and a flat stretch gives its own probability: a threshold that lies on one decides exactly.

    >>> along(np.array([[0.0, 0.1], [1.0, 0.5], [2.0, 0.5]]), [-9.0, 0.25, 1.3, 9.0]).tolist()
    [0.1, 0.2, 0.5, 0.5]
    """
    at, told, asked = knots[:, 0], knots[:, 1], np.asarray(scores, dtype=np.float64)
    above = told[np.minimum(np.searchsorted(at, asked), len(at) - 1)]
    return np.minimum(np.interp(asked, at, told), above)


def last_at_most(knots: Array, share: float) -> int:
    """The last knot whose probability is at most ``share``: up to its score nothing lies above; -1 if there is none.

    >>> last_at_most(np.array([[0.0, 0.1], [1.0, 0.5], [2.0, 0.5]]), 0.2)
    0
    """
    return int(np.searchsorted(knots[:, 1], share, side="right")) - 1
