"""Weights of a score's readings, by intervention: the circuit is to move their sum far, and no other node is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moved:
    """What ablations do to the means of N readings on engaged tokens, in the readings' own units.

    own: [N], how far down the circuit's nodes that act take each, at most to where it is on traffic. others: [J, N], how far
    each other node moves each.
    """

    own: Array
    others: Array


def weigh(moved: Moved, sigma: Array) -> Array:
    """Weights [N] of readings in units of ``sigma``: none is below 0, and they are 1 in sum.

    With these the circuit moves the score the most times as far as the worst other node does. Readings that the circuit takes
    nothing from weigh alike.

    What tells engaged tokens from traffic best may follow other nodes as well; on SmolLM2's induction pairs weights of a logistic
    regression gave ratios of 3.2 to 6.7 on pairs that were held out, and these 6.4 to 10.2.

    >>> weigh(Moved(np.array([4.0, 4.0]), np.array([[2.0, 0.0], [0.0, 1.0]])), np.ones(2)).round(3).tolist()
    [0.333, 0.667]
    """
    from scipy.optimize import linprog

    own, others = moved.own / sigma, moved.others / sigma
    if not (own > 0).any():
        return np.full(len(own), 1 / len(own))
    # The least t with |others @ w| <= t, where own @ w = 1.
    limit = -np.ones((len(others), 1))
    found = linprog(
        np.append(np.zeros(len(own)), 1.0),
        A_ub=np.block([[others, limit], [-others, limit]]),
        b_ub=np.zeros(2 * len(others)),
        A_eq=np.append(own, 0.0)[None],
        b_eq=[1.0],
    )
    weights = np.maximum(np.asarray(found.x[:-1], np.float64), 0.0)
    return np.asarray(weights / weights.sum())
