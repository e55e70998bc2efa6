"""The sketch of the tick that runs: every circuit and slice, in arrays that are made once. Nothing here is done token by token.

64 rows at a time, because that is a word: who was active is one bit a token, who was active together is an AND and a count of bits.
Whatever is counted is an integer, and float sums are of integers below 2^53, so that no order of adding changes a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.circuits.activity import Activity
from sidecar.circuits.circuit import BINS, TOKENS, Bank, Floats
from sidecar.circuits.sessions import Bets
from sidecar.circuits.tick import SINGLE, Counts, Shape, TickKey, TickRow
from sidecar.types import BoolArray, FloatArray, IndexArray

LIMIT = 31.9  # activities beyond are clipped, and counted
SCALE = 256.0
_WORD = 64
_ROWS, _ENGAGED, _NON_FINITE, _CLIPPED, _SINKS, _SHORT = range(len(SINGLE))

_ONE = np.uint32(1)  # of the counts' own type: anything else is ten times slower

Words = npt.NDArray[np.uint64]


class LiveSketch:
    """What came in since the last tick closed. One thread's.

    Memory is what ``nbytes`` says from the start to the end: 648 bytes for a circuit of 8 nodes in one slice.
    """

    def __init__(self, bank: Bank, source: str, tick_s: int) -> None:
        self._bank, self._source, self._tick_s = bank, source, tick_s
        slices, circuits, nodes = len(bank.slices), len(bank.circuits), len(bank.nodes)
        self._first, self._second = bank.pairs
        self._shapes = [Shape(len(one.nodes), one.tokens) for one in bank.circuits]
        self._node_ends = np.cumsum([one.nodes for one in self._shapes])
        self._pair_ends = np.cumsum([one.sizes[3] for one in self._shapes])
        self._active = np.array([node.active for node in bank.nodes], np.float32)[:, None]
        low, high = (np.array([getattr(one, name) for one in bank.circuits])[:, None] for name in ("low", "high"))
        self._low, self._per_bin = low, BINS / (high - low)
        self._single = np.zeros((len(SINGLE), slices, circuits), np.int64)
        # Float64 that holds integers only: exact below 2^53, which is 10^8 rows a tick, and what a product gives.
        self._sums = np.zeros((nodes, slices))
        self._squares = np.zeros((nodes, slices))
        self._pairs = np.zeros((slices, len(self._first)), np.uint32)
        self._scores = np.zeros(slices * circuits * BINS, np.uint32)
        self._bins_at = np.arange(circuits)[:, None] * BINS
        self._evidence = np.zeros((slices, circuits, max(TOKENS) + 1), np.int64)
        self._scratch = _Scratch(bank)
        self._last_tick: int | None = None
        self.ticks_refused = 0  # closed twice, or before one that was closed: the clock was set back

    @property
    def _held(self) -> tuple[npt.NDArray[Any], ...]:
        return (self._single, self._sums, self._squares, self._pairs, self._scores, self._evidence)

    @property
    def nbytes(self) -> int:
        """Of all arrays that last: bounded by circuits, nodes and slices, whatever comes in."""
        return sum(one.nbytes for one in self._held)

    def add(self, activity: Activity) -> None:
        """Count the rows in. The arrays are read, not kept."""
        self._single[_SINKS] += activity.sinks[:, None]
        for start in range(0, activity.nodes.shape[1], _WORD):
            part = slice(start, start + _WORD)
            at = activity.slices[part]
            self._count_flags(activity, part, at)
            self._add_moments(activity.nodes[:, part], at)
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
                self._sums[nodes, at].astype(np.int64),
                self._squares[nodes, at].astype(np.int64),
                self._pairs[at, pairs],
                self._scores.reshape(*self._single.shape[1:], BINS)[at, number],
                self._evidence[at, number, : shape.tokens + 1],
            )
        )
        return TickRow(key, (self._source,), shape, counts)

    def _count_flags(self, activity: Activity, part: slice, at: IndexArray) -> None:
        """Rows, engaged rows, and who was active together: counts of bits, slice by slice."""
        nodes, circuits = len(self._bank.nodes), len(self._bank.circuits)
        flags, n = self._scratch.flags, len(at)
        np.greater(activity.nodes[:, part], self._active, out=flags[:nodes, :n])
        flags[nodes : nodes + circuits, :n] = activity.sound[:, part]
        flags[nodes + circuits :, :n] = activity.engaged[:, part]
        flags[:, n:] = False
        words = _words(flags)
        sound = words[nodes : nodes + circuits]
        active = words[:nodes] & sound[self._bank.circuit_of]
        here = self._in_slices(at)
        masks = _words(here)[:, None]  # [slices, 1]
        rows = np.bitwise_count(sound & masks)
        self._single[_ROWS] += rows
        self._single[_NON_FINITE] += np.bitwise_count(self._wanted(activity, part) & masks) - rows
        self._single[_ENGAGED] += np.bitwise_count(words[nodes + circuits :] & masks)
        self._pairs += np.bitwise_count((active[self._first] & active[self._second]) & masks)

    def _wanted(self, activity: Activity, part: slice) -> Words:
        """[C] or [1], the rows that each circuit looks at; those beyond the rows that there are may be set."""
        if activity.wanted is None:
            return np.array([~np.uint64(0)])
        wanted = activity.wanted[:, part]
        flags = np.zeros((len(wanted), _WORD), np.bool_)
        flags[:, : wanted.shape[1]] = wanted
        return _words(flags)

    def _in_slices(self, at: IndexArray) -> BoolArray:
        """[slices, 64], False beyond the rows that there are."""
        places = self._scratch.places
        places.fill(-1)
        places[: len(at)] = at
        here: BoolArray = places == np.arange(len(self._bank.slices))[:, None]
        return here

    def _add_moments(self, nodes: FloatArray, at: IndexArray) -> None:
        n = len(at)
        fixed, wide = self._scratch.fixed[:, :n], self._scratch.wide[:, :n]
        np.clip(nodes, -LIMIT, LIMIT, out=fixed)
        if (fixed != nodes).any():
            which, row = np.nonzero(fixed != nodes)
            np.add.at(self._single[_CLIPPED], (at[row], self._bank.circuit_of[which]), 1)
        fixed *= SCALE
        np.rint(fixed, out=fixed)
        of = (at[:, None] == np.arange(len(self._bank.slices))).astype(np.float32)  # [n, slices]
        # 64 values of at most 8166 stay below 2^24: exact in float32. Their squares do not, and are added in float64.
        self._sums += fixed @ of
        np.square(fixed, out=wide, dtype=np.float64)
        self._squares += wide @ of.astype(np.float64)

    def _bin_scores(self, scores: Floats, sound: BoolArray, at: IndexArray) -> None:
        bins = (scores - self._low) * self._per_bin
        np.maximum(bins, 0, out=bins)
        np.minimum(bins, BINS - 1, out=bins)
        codes = bins.astype(np.intp)  # cutting off is floor, from 0 on
        codes += at * (len(self._bank.circuits) * BINS) + self._bins_at
        np.add.at(self._scores, codes.ravel() if sound.all() else codes[sound], _ONE)


class _Scratch:
    """What 64 rows are worked on in. Made once: blocks of this size would come from and go back to the system each time."""

    def __init__(self, bank: Bank) -> None:
        nodes, circuits = len(bank.nodes), len(bank.circuits)
        self.flags = np.zeros((nodes + 2 * circuits, _WORD), np.bool_)
        self.fixed = np.zeros((nodes, _WORD), np.float32)
        self.wide = np.zeros((nodes, _WORD))
        self.places = np.zeros(_WORD, np.intp)


def _words(flags: BoolArray) -> Words:
    """[R, 64] to [R]: a bit for each of 64 tokens."""
    return np.packbits(flags.reshape(-1), bitorder="little").view("<u8")
