"""Weights of a score's readings, by intervention: the circuit is to move their sum far, and no other node is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RATIO = 10.0  # on the pairs that weights are fitted on: twice what the gate asks for on others
_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Moved:
    """What ablations do to the means of N readings on engaged tokens, in the readings' own units.

    own: [N], how far down the circuit's nodes that act take each, at most to where it is on traffic. others: [J, N], how far
    each other node moves each.
    """

    own: Array
    others: Array


def weigh(moved: Moved, sigma: Array, telling: Array) -> Array:
    """Weights [N] of readings in units of ``sigma``: none is below 0, and they are 1 in sum.

    telling: [N], those that tell engaged tokens from traffic best. They are taken as they are if by them the circuit moves the
    score `RATIO` times as far as the worst other node does; else the first that do so on the way from them to those of the largest
    ratio; else the latter. Readings that the circuit takes nothing from keep ``telling``, and are left to the gate.

    >>> moved = Moved(np.array([6.0, 6.0]), np.array([[2.0, 0.0], [0.0, 0.1]]))
    >>> weigh(moved, np.ones(2), np.array([0.5, 0.5])).round(3).tolist()
    [0.3, 0.7]
    """
    own, others, telling = moved.own / sigma, moved.others / sigma, np.maximum(telling, 0.0)
    if not telling.any():
        telling = np.ones(len(own))
    if own @ telling <= 0:
        return np.asarray(telling / telling.sum())
    telling = telling / (own @ telling)  # by these as by the surest the circuit moves the score by 1
    surest = _of_largest_ratio(own, others)

    def worst(way: float) -> float:
        return float(np.abs(others @ (telling + way * (surest - telling))).max())

    low, high = 0.0, 1.0
    if worst(0.0) * RATIO <= 1:
        high = 0.0
    elif worst(1.0) * RATIO <= 1:  # what is good enough is convex, so that it begins at one place of the way
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if worst(middle) * RATIO <= 1 else (middle, high)
    weights = telling + high * (surest - telling)
    return np.asarray(weights / weights.sum())


def _of_largest_ratio(own: Array, others: Array) -> Array:
    """The least t with |others @ w| <= t, where own @ w = 1 and no weight is below 0: a linear programme."""
    from scipy.optimize import linprog

    limit = -np.ones((len(others), 1))
    found = linprog(
        np.append(np.zeros(len(own)), 1.0),
        A_ub=np.block([[others, limit], [-others, limit]]),
        b_ub=np.zeros(2 * len(others)),
        A_eq=np.append(own, 0.0)[None],
        b_eq=[1.0],
    )
    return np.maximum(np.asarray(found.x[:-1], np.float64), 0.0)
