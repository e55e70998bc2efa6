"""All that interventions work with: the resumed model, the probe's subspaces, their random rivals, the texts' labels and pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.causal.behaviour import Measure
from probes.causal.directions import Null, Spread, Subspace, random_basis
from probes.causal.erasure import Erasure
from probes.causal.pairs import Pair
from probes.causal.questions import Questions
from probes.causal.resume import Resumed
from probes.stages import named
from sidecar.types import FloatArray

Array = npt.NDArray[np.float64]
# Streams of random numbers, so that one intervention's draws do not depend on which others were run.
_SUBSPACES, _VECTORS, _ERASURES = range(3)


@dataclass(frozen=True, slots=True)
class Stand:
    """The probe at one of its tap points, ``number`` among them, and its random rivals there.

    Index None of a rival is the probe itself; 0 ... are random ones, the same for the same seed.
    """

    number: int
    probe: Subspace
    around: Spread
    states: tuple[FloatArray, ...]
    erasure: Erasure
    null: Null
    seed: int

    @property
    def width(self) -> float:
        """Standard deviation of the states along the probe."""
        return float(np.sqrt(self.around.variance(self.probe.along[:, None])))

    def basis(self, rival: int | None) -> Array:
        """Orthonormal [D, r]."""
        own = self.probe.basis
        return own if rival is None else random_basis(self.null, self.around, own, self._draws(_SUBSPACES, rival))

    def along(self, rival: int | None) -> Array:
        """The unit vector [D] to steer along."""
        own = self.probe.along
        if rival is None:
            return own
        return random_basis(self.null, self.around, own[:, None], self._draws(_VECTORS, rival))[:, 0]

    def strength(self, basis: Array) -> float:
        """The share of the states' part in a random subspace that is taken, so that states change as much as for the probe.

        Never more than all of it: taking more would turn states over. (Matched subspaces have just the right part: it is 1.)
        """
        return float(min(1.0, np.sqrt(self.around.variance(self.probe.basis) / self.around.variance(basis))))

    def erasing(self, rival: int | None) -> tuple[Array, Array, float]:
        """Left and right [D, 1] of an erasure, and with what strength it changes states as much as the probe's does."""
        if rival is None:
            return self.erasure.left, self.erasure.right, 1.0
        left, right = self.erasure.at_random(self._draws(_ERASURES, rival))
        return left, right, self._size(self.erasure.left, self.erasure.right) / self._size(left, right)

    def _size(self, left: Array, right: Array) -> float:
        return float(np.linalg.norm(left) * np.sqrt(self.around.variance(right)))

    def _draws(self, stream: int, rival: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, rival, self.number])


@dataclass(frozen=True, slots=True)
class Bench:
    """stands: one for each of the probe's tap points, in their order; every intervention is done at all of them."""

    resumed: Resumed
    questions: Questions
    measure: Measure
    stands: tuple[Stand, ...]
    pairs: tuple[Pair, ...]
    paired: str
    null: Null
    randoms: int
    seed: int

    @property
    def skip(self) -> int:
        return self.resumed.skip

    @property
    def where(self) -> str:
        """For people."""
        return named(self.resumed.everywhere)
