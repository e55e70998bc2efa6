"""Where the sketch works on 64 rows: buffers that are made once, and the passes over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sidecar.circuits.activity import Activity
from sidecar.circuits.circuit import BINS, Bank, Floats
from sidecar.types import BoolArray, FloatArray, IndexArray

WORD = 64

Words = npt.NDArray[np.uint64]


class Scratch:
    """What 64 rows are worked on in. Made once: blocks of this size would come from and go back to the system each time.

    What it hands out is good until it is asked the same again.
    """

    def __init__(self, bank: Bank, scale: float) -> None:
        nodes, circuits, slices = len(bank.nodes), len(bank.circuits), len(bank.slices)
        self._circuits, self._scale = circuits, scale
        self._flags = np.zeros((nodes + 3 * circuits, WORD), np.bool_)
        # As wide as what they are held against: three times as fast as a column.
        self._active = _wide([node.active for node in bank.nodes]).astype(np.float32)
        self._low = _wide([one.low for one in bank.circuits])
        self._per_bin = _wide([BINS / (one.high - one.low) for one in bank.circuits])
        self._first_bin = _wide([BINS * number for number in range(circuits)]).astype(np.intp)
        self._fixed, self._moments = np.zeros(nodes * WORD, np.float32), np.zeros(2 * nodes * WORD)
        self._bins, self._codes = np.zeros(circuits * WORD), np.zeros(circuits * WORD, np.intp)
        self._places = np.zeros(WORD, np.intp)
        self._slices = np.arange(slices)[:, None]
        self._here = np.zeros((slices, WORD), np.bool_)
        self._first, self._second = bank.pairs
        self._one, self._other = np.zeros((2, len(self._first)), np.uint64)
        self._both = np.zeros((slices, len(self._first)), np.uint64)
        self._counted = np.zeros(self._both.shape, np.uint8)

    def in_slices(self, at: IndexArray) -> BoolArray:
        """[slices, 64], False beyond the rows that there are."""
        self._places.fill(-1)
        self._places[: len(at)] = at
        return np.equal(self._places, self._slices, out=self._here)

    def words(self, activity: Activity, part: slice) -> tuple[Words, Words]:
        """A bit for each row. [N]: the node was active. [3 C]: sound, engaged, looked at; each circuit by circuit."""
        nodes, c = activity.nodes[:, part], self._circuits
        flags, n = self._flags, nodes.shape[1]
        if n < WORD:
            flags[:, n:] = False
        np.greater(nodes, self._active[:, :n], out=flags[: -3 * c, :n])
        flags[-3 * c : -2 * c, :n] = activity.sound[:, part]
        flags[-2 * c : -c, :n] = activity.engaged[:, part]
        flags[-c:, :n] = True if activity.wanted is None else activity.wanted[:, part]
        found = words(flags)
        return found[: -3 * c], found[-3 * c :]

    def together(self, active: Words, masks: Words) -> npt.NDArray[np.uint8]:
        """[slices, pairs], rows at which both were active."""
        active.take(self._first, out=self._one, mode="clip")  # without a mode, what goes to ``out`` is copied twice
        active.take(self._second, out=self._other, mode="clip")
        np.bitwise_and(self._one, self._other, out=self._one)
        np.bitwise_and(self._one, masks, out=self._both)
        return np.bitwise_count(self._both, out=self._counted)

    def moments(self, nodes: FloatArray) -> Floats:
        """[2, N, n]: in units of 1 / ``scale``, rounded; and their squares."""
        fixed = self._fixed[: nodes.size].reshape(nodes.shape)
        moments = self._moments[: 2 * nodes.size].reshape(2, *nodes.shape)
        np.multiply(nodes, self._scale, out=fixed)
        np.rint(fixed, out=fixed)
        np.copyto(moments[0], fixed)
        np.square(moments[0], out=moments[1])
        return moments

    def bins(self, scores: Floats) -> IndexArray:
        """[C, n], where each score is counted, in the first slice."""
        n = scores.shape[1]
        bins = self._bins[: scores.size].reshape(scores.shape)
        codes = self._codes[: scores.size].reshape(scores.shape)
        np.subtract(scores, self._low[:, :n], out=bins)
        bins *= self._per_bin[:, :n]
        np.maximum(bins, 0, out=bins)
        np.minimum(bins, BINS - 1, out=bins)
        np.copyto(codes, bins, casting="unsafe")  # cutting off is floor, from 0 on
        codes += self._first_bin[:, :n]
        return codes


def _wide(column: Sequence[float]) -> Floats:
    """[R, 64], each as often as there are rows."""
    return np.repeat(np.array(column, np.float64)[:, None], WORD, axis=1)


def words(flags: BoolArray) -> Words:
    """[R, 64] to [R]: a bit for each of 64 tokens."""
    return np.packbits(flags.reshape(-1), bitorder="little").view("<u8")
