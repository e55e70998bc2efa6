"""The directions of a probe as a subspace, how far states spread along it, and random subspaces that are a fair match.

Which random directions are a fair match? States spread a hundred times wider along some axes than along others, so what a random
direction takes out may be far more, or far less, than what the probe's takes out. (SmolLM2 at block 14, standard deviations: .3
to 40 along single axes; 4.6 along isotropic directions, 22 along ones drawn in the covariance's metric; 3.9 along a logistic
sentiment probe, 18 along a difference of means.) So the ones used here are drawn as ``C^(t/2) g`` (C the states' covariance, g
standard normal), with t solved for each draw so that states spread along it exactly as much as along the probe's: t = 0 is
isotropic, t = 1 the covariance's metric. Taking either out, steering along either by the same number of standard deviations, or
exchanging either between texts then changes the states by the same amount.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.manifest import AggregationKind
from probes.serving import Served

Array = npt.NDArray[np.float64]
_ATTENDING = frozenset({AggregationKind.ATTENTION, AggregationKind.MAX_ROLLING_ATTENTION})
# Relative to the largest: directions that add less than this to a subspace are in it already.
_RANK_TOLERANCE = 1e-6
_FLOOR = 1e-9  # of eigenvalues, relative to the largest: below is rounding
_STEEPEST = 16.0
_HALVINGS = 40


class Null(StrEnum):
    """Random directions to compare with."""

    MATCHED = "matched"  # states spread along them as much as along the probe's
    ISOTROPIC = "isotropic"


@dataclass(frozen=True, slots=True)
class Subspace:
    """basis: float64 [D, r], orthonormal. along: float64 [D], the unit vector in it that raises the probe's score most."""

    basis: Array
    along: Array

    @property
    def rank(self) -> int:
        return int(self.basis.shape[1])


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean [D] and eigen-decomposition (values [D], vectors [D, D] by column) of states' covariance, over ``rows`` states."""

    mean: Array
    values: Array
    vectors: Array
    rows: int

    def variance(self, basis: Array) -> float:
        """Mean squared length of the states' part in the subspace, from their mean: the square of what taking it out changes."""
        return float((self.values[:, None] * (self.vectors.T @ basis) ** 2).sum())


def subspace(served: Served) -> Subspace:
    """What the probe's values read; an attention's queries only weigh. Raises LabError if heads cancel each other."""
    wide = served.directions.astype(np.float64)
    values = wide[:, :1] if served.aggregation.kind in _ATTENDING else wide
    left, sizes, _ = np.linalg.svd(values / np.linalg.norm(values, axis=0), full_matrices=False)
    along = values.sum(axis=1)
    length = float(np.linalg.norm(along))
    if not length > _RANK_TOLERANCE * float(np.linalg.norm(values)):
        raise LabError("the probe's heads cancel each other: there is no direction to steer along")
    return Subspace(left[:, sizes > _RANK_TOLERANCE * sizes[0]], along / length)


def spread(states: Iterable[npt.NDArray[Any]]) -> Spread:
    """From texts' states, [n_i, D] each; at least two states in all. Memory: D^2."""
    rows, total, outer = 0, np.zeros(0), np.zeros((0, 0))
    shift: Array | None = None
    for text in states:
        wide = text.astype(np.float64)
        if shift is None:  # sums around a typical state lose no digits
            shift = wide.mean(axis=0)
            total, outer = np.zeros_like(shift), np.zeros((len(shift), len(shift)))
        away = wide - shift
        rows, total, outer = rows + len(away), total + away.sum(axis=0), outer + away.T @ away
    if shift is None or rows < 2:  # a covariance needs two
        raise LabError("there are not enough states to see how they spread")
    mean = total / rows
    values, vectors = np.linalg.eigh(outer / rows - np.outer(mean, mean))
    return Spread(shift + mean, np.maximum(values, 0.0), vectors, rows)


def random_basis(null: Null, around: Spread, basis: Array, draws: np.random.Generator) -> Array:
    """A random orthonormal basis [D, r] of the rank of ``basis``; for `Null.MATCHED`, with its variance too. O(D^2 r)."""
    noise = draws.standard_normal(basis.shape)
    if null is Null.ISOTROPIC:
        return _orthonormal(noise)
    wanted, low, high = around.variance(basis), -_STEEPEST, _STEEPEST
    for _ in range(_HALVINGS):
        tilt = (low + high) / 2
        within = _tilted(around.values, noise, tilt)
        if float((around.values[:, None] * within**2).sum()) < wanted:
            low = tilt
        else:
            high = tilt
    return np.asarray(around.vectors @ _tilted(around.values, noise, (low + high) / 2))


def _tilted(values: Array, noise: Array, tilt: float) -> Array:
    """C^(tilt/2) g in C's own axes, made orthonormal; in logarithms, so that steep tilts neither overflow nor vanish."""
    logs = 0.5 * tilt * np.log(np.maximum(values, _FLOOR * values.max()))
    return _orthonormal(np.exp(logs - logs.max())[:, None] * noise)


def _orthonormal(columns: Array) -> Array:
    basis, _ = np.linalg.qr(columns)
    return np.asarray(basis, dtype=np.float64)
