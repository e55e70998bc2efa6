"""The sketch of the tick that runs: every circuit and slice, in arrays that are made once. Nothing here is done token by token.

64 rows at a time, because that is a word: who was active is one bit a token, who was active together is an AND and a count of bits.
Whatever is counted is an integer, and float sums are of integers below 2^53, so that no order of adding changes a bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.circuits.activity import Activity
from sidecar.circuits.circuit import BINS, TOKENS, Bank, Floats
from sidecar.circuits.scratch import WORD, Scratch, Words, words
from sidecar.circuits.sessions import Bets
from sidecar.circuits.tick import SINGLE, Counts, Shape, TickKey, TickRow
from sidecar.types import BoolArray, FloatArray, IndexArray

LIMIT = 31.9  # activities beyond are clipped, and counted
SCALE = 256.0
_LEAST_CLIPPED = math.floor(LIMIT * SCALE)  # in 256ths, rounded
_ROWS, _ENGAGED, _NON_FINITE, _CLIPPED, _SINKS, _SHORT = range(len(SINGLE))

_ONE = np.uint32(1)  # of the counts' own type: anything else is ten times slower


class LiveSketch:
    """What came in since the last tick closed. One thread's.

    Memory is what ``nbytes`` says from the start to the end: 648 bytes for a circuit of 8 nodes in one slice.
    """

    def __init__(self, bank: Bank, source: str, tick_s: int) -> None:
        self._bank, self._source, self._tick_s = bank, source, tick_s
        slices, circuits, nodes = len(bank.slices), len(bank.circuits), len(bank.nodes)
        self._shapes = [Shape(len(one.nodes), one.tokens) for one in bank.circuits]
        self._node_ends = np.cumsum([one.nodes for one in self._shapes])
        self._pair_ends = np.cumsum([one.sizes[3] for one in self._shapes])
        self._single = np.zeros((len(SINGLE), slices, circuits), np.int64)
        # Float64 that holds integers only: exact below 2^53, which is 10^8 rows a tick, and what a product gives.
        self._moments = np.zeros((2, nodes, slices))  # sums, squares
        self._pairs = np.zeros((slices, self._pair_ends[-1]), np.uint32)
        self._scores = np.zeros(slices * circuits * BINS, np.uint32)
        self._evidence = np.zeros((slices, circuits, max(TOKENS) + 1), np.int64)
        self._scratch = Scratch(bank, SCALE)
        self._last_tick: int | None = None
        self.ticks_refused = 0  # closed twice, or before one that was closed: the clock was set back

    @property
    def _held(self) -> tuple[npt.NDArray[Any], ...]:
        return (self._single, self._moments, self._pairs, self._scores, self._evidence)

    @property
    def nbytes(self) -> int:
        """Of all arrays that last: bounded by circuits, nodes and slices, whatever comes in."""
        return sum(one.nbytes for one in self._held)

    def add(self, activity: Activity) -> None:
        """Count the rows in. The arrays are read, not kept."""
        self._single[_SINKS] += activity.sinks[:, None]
        for start in range(0, activity.nodes.shape[1], WORD):
            part = slice(start, start + WORD)
            at = activity.slices[part]
            here = self._scratch.in_slices(at)
            self._count_flags(activity, part, words(here)[:, None])
            self._add_moments(activity.nodes[:, part], at, here[:, : len(at)].T.astype(np.float64, order="C"))
            self._bin_scores(activity.scores[:, part], activity.sound[:, part], at)

    def bet(self, bets: Bets) -> None:
        """Count the sessions that bet."""
        np.add.at(self._evidence, (bets.slices, bets.circuits, bets.engaged), 1)

    def short(self, sessions: Counts) -> None:
        """[slices, C]: sessions that were given up before they had bet."""
        self._single[_SHORT] += sessions

    def close(self, tick: int) -> tuple[TickRow, ...]:
        """Everything since the last close, as the sketches of ``tick``; begins anew. Circuits and slices without news give none.

        A tick that is not after the last one closed gives nothing and is counted in ``ticks_refused``; what came in stays for the
        next: two rows of one source and tick would be taken for a repetition wherever they meet.
        """
        if self._last_tick is not None and tick <= self._last_tick:
            self.ticks_refused += 1
            return ()
        self._last_tick = tick
        made = tuple(
            self._row(tick, at, number)
            for at, number in np.argwhere(self._single.any(axis=0) | self._evidence.any(axis=2)).tolist()
        )
        for one in self._held:
            one.fill(0)
        return made

    def set_back(self) -> None:
        """The clock was set back: the next tick may be any. Whoever calls this closes none twice."""
        self._last_tick = None

    def evidence(self, number: int) -> Counts:
        """[slices, k+1] of one circuit in the tick that runs: a copy, for whoever shows it."""
        return self._evidence[:, number, : self._bank.circuits[number].tokens + 1].copy()

    def _row(self, tick: int, at: int, number: int) -> TickRow:
        circuit, shape = self._bank.circuits[number], self._shapes[number]
        nodes = slice(self._node_ends[number] - shape.nodes, self._node_ends[number])
        pairs = slice(self._pair_ends[number] - shape.sizes[3], self._pair_ends[number])
        key = TickKey(circuit.model_hash, circuit.spec_hash, circuit.name, self._bank.slices[at], self._tick_s, tick)
        counts = np.concatenate(
            (
                self._single[:, at, number],
                self._moments[:, nodes, at].ravel().astype(np.int64),
                self._pairs[at, pairs],
                self._scores.reshape(*self._single.shape[1:], BINS)[at, number],
                self._evidence[at, number, : shape.tokens + 1],
            )
        )
        return TickRow(key, (self._source,), shape, counts)

    def _count_flags(self, activity: Activity, part: slice, masks: Words) -> None:
        """Rows, engaged rows, and who was active together: counts of bits, slice by slice. masks: [slices, 1]."""
        active, flags = self._scratch.words(activity, part)
        counted = np.bitwise_count(flags & masks).reshape(len(masks), 3, -1).swapaxes(0, 1)
        counted[_NON_FINITE] -= counted[_ROWS]  # there the rows that it looks at were counted
        self._single[: _NON_FINITE + 1] += counted
        active &= flags[self._bank.circuit_of]
        self._pairs += self._scratch.together(active, masks)

    def _add_moments(self, nodes: FloatArray, at: IndexArray, of: Floats) -> None:
        """of: [n, slices], 1 where the row is of the slice."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is that large is clipped below
            moments = self._scratch.moments(nodes) @ of
        if not moments[1].max() < _LEAST_CLIPPED**2:  # where all squares together are below it, each one is
            which, row = np.nonzero(np.abs(nodes) > LIMIT)
            if len(which):
                np.add.at(self._single[_CLIPPED], (at[row], self._bank.circuit_of[which]), 1)
                moments = self._scratch.moments(np.clip(nodes, -LIMIT, LIMIT)) @ of
        self._moments += moments

    def _bin_scores(self, scores: Floats, sound: BoolArray, at: IndexArray) -> None:
        codes = self._scratch.bins(scores)
        if len(self._bank.slices) > 1:
            codes += at * (len(self._bank.circuits) * BINS)
        np.add.at(self._scores, codes.ravel() if sound.all() else codes[sound], _ONE)
