"""From a step's readings to what its circuits' nodes did, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sidecar.circuits.circuit import Bank, Floats
from sidecar.types import BoolArray, FloatArray, IndexArray, PositionArray

SINKS: Final = (
    4  # the first positions of a sequence take attention that has nowhere to go: their states are like no others
)
_BLOCK = 32  # rows at a time: what is worked on stays in the cache, and comes from no system call
_FLOOR = 1e-30  # of an energy: a head that was ablated to zero reads -69, which the sketch clips; it is not left out


@dataclass(frozen=True, slots=True)
class Rows:
    """A step's readings of the columns that circuits read, and whose they are. Session: which of ``session_ids``.

    wanted: the rows that each circuit looks at, where that is not all of them: it is made to look at some kinds of tokens, or
    what it reads was not read. For others it is as if they had not been.
    """

    readings: FloatArray  # [T, columns]
    positions: PositionArray  # [T]
    slices: IndexArray  # [T], places in the bank's slices
    sessions: IndexArray  # [T]
    session_ids: tuple[str, ...]  # distinct; empty for rows of nobody's session
    wanted: BoolArray | None = None  # [C, T]

    def __post_init__(self) -> None:
        want = (len(self.readings),)
        if not self.positions.shape == self.slices.shape == self.sessions.shape == want:
            raise ValueError("want a position, a slice and a session for each row")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the nodes of every circuit did at the T rows that count, by node, so that one's tokens lie together.

    ``sound`` is False where a reading that the circuit needs was NaN or infinite: everything else about that row and circuit
    is then 0 or False, and other circuits' are as they are.
    """

    nodes: FloatArray  # [N, T]
    scores: Floats  # [C, T]
    engaged: BoolArray  # [C, T], S > theta
    sound: BoolArray  # [C, T]
    slices: IndexArray  # [T]
    sessions: IndexArray  # [T]
    session_ids: tuple[str, ...]
    sinks: IndexArray  # [slices], rows left out because they stand at the first positions
    wanted: BoolArray | None = None  # [C, T], as in `Rows`; what is not wanted is not sound
    positions: PositionArray | None = None  # [T]


class Reader:
    """The arithmetic of a bank, laid out once.

    >>> from sidecar.circuits.circuit import Circuit, Node
    >>> one = Circuit("c", "m", "s", (Node.energy("head", (0, 1)),), (2.0,), bias=1.0, theta=0.0, low=-9, high=9)
    >>> at = np.zeros(1, dtype=np.intp)
    >>> rows = Rows(np.array([[3.0, 4.0]], np.float32), np.array([7], np.uint32), at, at, ("a",))
    >>> Reader(Bank((one,))).read(rows).scores.round(3).tolist()  # 2 log(3^2 + 4^2) + 1
    [[7.438]]
    """

    def __init__(self, bank: Bank) -> None:
        nodes = bank.nodes
        self._bank = bank
        self._columns = np.array([column for node in nodes for column in node.columns], dtype=np.intp)  # [M]
        self._starts = np.cumsum([0, *(len(node.columns) for node in nodes[:-1])])
        self._linear, self._square, self._centre = (
            np.array([value for node in nodes for value in getattr(node, name)])[:, None]
            for name in ("linear", "square", "centre")
        )
        self._squared = bool(self._square.any())
        constant, mu, sigma = (
            np.array([getattr(node, name) for node in nodes])[:, None] for name in ("constant", "mu", "sigma")
        )
        # What has no logarithm is standardised by its factors; what has one, after it.
        log = np.array([node.log for node in nodes])[:, None]
        self._log = np.flatnonzero(log)
        scale = np.where(log, 1.0, sigma)
        each = np.repeat(scale, [len(node.columns) for node in nodes], axis=0)
        self._linear, self._square = self._linear / each, self._square / each
        self._constant = np.where(log, constant, constant - mu) / scale
        self._mu, self._sigma = mu[self._log], sigma[self._log]
        self._weights = np.array([weight for one in bank.circuits for weight in one.weights])[:, None]
        self._bias, self._theta = (
            np.array([getattr(one, name) for one in bank.circuits])[:, None] for name in ("bias", "theta")
        )

    def read(self, rows: Rows) -> Activity:
        """Raises ValueError if a slice or a session is not one of those that there are. O(T x columns read)."""
        bank = self._bank
        if len(rows.slices) and not 0 <= rows.slices.min() <= rows.slices.max() < len(bank.slices):
            raise ValueError("a row is of a slice that the bank does not have")
        if len(rows.sessions) and not 0 <= rows.sessions.min() <= rows.sessions.max() < len(rows.session_ids):
            raise ValueError("a row is of a session without an id")
        kept = np.flatnonzero(rows.positions >= SINKS)
        nodes = np.empty((len(bank.nodes), len(kept)), np.float32)
        scores = np.empty((len(bank.circuits), len(kept)))
        with np.errstate(all="ignore"):  # what is not finite is told by ``sound``
            for start in range(0, len(kept), _BLOCK):
                part = slice(start, start + _BLOCK)
                nodes[:, part] = self._nodes(rows.readings[kept[part]])
                weighed = np.add.reduceat(nodes[:, part] * self._weights, bank.node_starts, axis=0)
                scores[:, part] = weighed + self._bias
        wanted = None if rows.wanted is None else rows.wanted[:, kept]
        sound = np.isfinite(scores) if wanted is None else np.isfinite(scores) & wanted
        if not sound.all():
            nodes[~sound[bank.circuit_of]] = 0.0
            scores[~sound] = 0.0
        slices = rows.slices[kept]
        left_out = np.bincount(rows.slices, minlength=len(bank.slices)) - np.bincount(
            slices, minlength=len(bank.slices)
        )
        return Activity(
            nodes,
            scores,
            (scores > self._theta) & sound,
            sound,
            slices,
            rows.sessions[kept],
            rows.session_ids,
            left_out,
            wanted,
            rows.positions[kept],
        )

    def _nodes(self, readings: FloatArray) -> Floats:
        """[N, T]: in float64 until it is standardised, for an SPE is a small difference of large squares."""
        read = readings.T.astype(np.float64, order="C")[self._columns]  # [M, T]
        terms = read * self._linear
        if self._squared:
            terms += self._square * (read - self._centre) ** 2
        values: Floats = terms if len(terms) == len(self._starts) else np.add.reduceat(terms, self._starts, axis=0)
        values += self._constant
        if len(self._log):
            logs = np.log(np.maximum(values[self._log], _FLOOR))  # maximum hands a NaN on
            values[self._log] = (logs - self._mu) / self._sigma
        return values
