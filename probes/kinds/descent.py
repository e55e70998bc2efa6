"""Fit directions through the score that they will be served with, over texts that need not fit into memory.

Every step of L-BFGS is one pass over the texts, whose loss and gradient are sums over batches. So the fit does not depend on how
the texts are cut into batches: what is read again from disk gives what is held in memory, which steps along random
mini-batches would not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from probes.kinds.losses import Loss
from probes.kinds.rows import Batch, Texts, batches, width_of
from sidecar.types import BoolArray, FloatArray

Array = npt.NDArray[np.float64]
MEMORY_BYTES = 256 << 20  # of states held between passes; more are read again
_BATCH_BYTES = 1 << 20  # goes through a core's cache twice a pass: with 4 MiB a fit takes half as long again
_TOLERANCE = 1e-4  # of the mean gradient, as scikit-learn's logistic regression has it
STEPS = 200  # what a convex loss needs at most


@dataclass(frozen=True, slots=True)
class Directions:
    """readings = rows @ slopes + offsets, standardisation folded in: float64 [D, K] and [K]."""

    slopes: Array
    offsets: Array


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of every coordinate over all rows; 1 where it never moves."""

    mean: Array  # [D]
    spread: Array  # [D]

    def standardise(self, rows: FloatArray) -> FloatArray:
        return ((rows - self.mean.astype(np.float32)) / self.spread.astype(np.float32)).astype(np.float32, copy=False)

    def fold(self, slopes: Array, offsets: Array) -> Directions:
        """From directions over standardised rows to the same over rows as they come."""
        folded = slopes / self.spread[:, None]
        return Directions(folded, offsets - self.mean @ folded)

    def unfold(self, directions: Directions) -> tuple[Array, Array]:
        """Undo `fold`."""
        return directions.slopes * self.spread[:, None], directions.offsets + self.mean @ directions.slopes


class Passes:
    """Goes over all texts again and again, standardised, in float32; holds them if they fit into ``memory_bytes``."""

    def __init__(self, texts: Texts, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._texts, self.width = texts, width_of(texts)
        self._held: list[Batch] | None = None
        self.scale, size = self._measure()
        if size <= memory_bytes:
            self._held = list(self._standardised())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._held) if self._held is not None else self._standardised()

    def _standardised(self) -> Iterator[Batch]:
        for batch in batches(self._texts, self.width, _BATCH_BYTES):
            yield Batch(self.scale.standardise(batch.rows), batch.spans, batch.first)

    def _measure(self) -> tuple[Scale, int]:
        """Means and squares of each batch about its own mean, put together (Chan, Golub and LeVeque, 1979)."""
        count, size, mean, squares = 0, 0, np.zeros(self.width), np.zeros(self.width)
        for batch in batches(self._texts, self.width, _BATCH_BYTES):
            rows = len(batch.rows)
            own = batch.rows.mean(axis=0, dtype=np.float64)
            shift, total = own - mean, count + rows
            squares += batch.rows.var(axis=0, dtype=np.float64) * rows + shift**2 * (count * rows / total)
            mean += shift * (rows / total)
            count, size = total, size + batch.rows.nbytes
        spread = np.sqrt(squares / count)
        still = spread <= np.abs(mean) * 1e-7  # what is left of a constant in float32
        if still.all():
            raise LabError("every row of states is the same: there is nothing to find")
        spread[still] = 1.0
        return Scale(mean, spread), size


def descend(
    passes: Passes,
    labels: BoolArray,
    weights: Array,
    loss: Loss,
    start: Directions,
    *,
    strength: float,
    steps: int = STEPS,
) -> Directions:
    """Minimise the texts' weighted losses plus |slopes|^2 / (2 strength), slopes over standardised rows.

    strength: scikit-learn's C; the more, the less the prior holds the directions down. start: where to begin, which says how
    many columns there are. steps: at most. Deterministic on one thread. Raises LabError if the numbers leave the finite ones.
    """
    from scipy.optimize import minimize

    signs = np.where(labels, 1.0, -1.0)
    slopes, offsets = passes.scale.unfold(start)
    shape, edge = slopes.shape, slopes.size

    def wrong(point: Array) -> tuple[float, Array]:
        now = point[:edge].reshape(shape)
        total, pull = (
            0.5 / strength * float((now**2).sum()),
            np.concatenate([point[:edge] / strength, np.zeros(shape[1])]),
        )
        for batch in passes:
            here = slice(batch.first, batch.first + len(batch.spans))
            readings = (batch.rows @ now.astype(np.float32)).astype(np.float64) + point[edge:]
            value, pulls = loss(readings, batch.spans, signs[here], weights[here])
            total += value
            pull[:edge] += (batch.rows.T @ pulls.astype(np.float32)).ravel()
            pull[edge:] += pulls.sum(axis=0)
        return total / len(labels), pull / len(labels)

    begin = np.concatenate([slopes.ravel(), offsets])
    found = minimize(
        wrong,
        begin,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "gtol": _TOLERANCE, "maxfun": 2 * steps},
    )
    if not np.isfinite(found.x).all():
        raise LabError("the fit left the finite numbers: are the states' scales sound?")
    return passes.scale.fold(found.x[:edge].reshape(shape), found.x[edge:])
