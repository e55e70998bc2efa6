"""What circuits did since the sidecar started: the sketches of all closed ticks added up, for whoever scrapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.circuits.circuit import BINS, TOKENS, Bank, Circuit
from sidecar.circuits.tick import SINGLE, Counts, TickRow
from sidecar.judge.tally import SCORE_EDGES, TallyBank
from sidecar.types import IndexArray

Array = npt.NDArray[Any]
EVIDENCE = max(TOKENS) + 1  # shares of engaged tokens, in eighths


@dataclass(frozen=True, slots=True)
class Totals:
    """Arrays of C circuits in S slices, with N nodes in all; in this order they are published."""

    single: Counts  # [C, S, SINGLE]
    evidence: Counts  # [C, S, 9], sessions by the share of their tokens that was engaged, in eighths
    active: Counts  # [N], tokens at which the node was active


class CircuitCounts:
    """Only grows. Scores are shown as 1 / (1 + exp(theta - S)): above one half is engaged. Bin by bin, by the bin's middle."""

    def __init__(self, bank: Bank) -> None:
        circuits, slices = len(bank.circuits), len(bank.slices)
        self._at = {
            (one.name, name): (c, s) for c, one in enumerate(bank.circuits) for s, name in enumerate(bank.slices)
        }
        starts = [*bank.node_starts.tolist(), len(bank.nodes)]
        self._nodes = [slice(*ends) for ends in pairwise(starts)]  # of each circuit
        self._spec = [(one.name, one.spec_hash, one.model_hash) for one in bank.circuits]
        self.totals = Totals(
            np.zeros((circuits, slices, len(SINGLE)), np.int64),
            np.zeros((circuits, slices, EVIDENCE), np.int64),
            np.zeros(len(bank.nodes), np.int64),
        )
        self.scores = TallyBank(SCORE_EDGES, circuits)
        self._shown = np.stack([_shown(one) for one in bank.circuits])  # [C, 64]

    def add(self, rows: Iterable[TickRow]) -> None:
        """The sketches of a tick that closed."""
        scores = np.zeros(self._shown.shape, np.int64)
        for row in rows:
            circuit, at = self._at[row.key.circuit, row.key.slice]
            self.totals.single[circuit, at] += row.counts[: len(SINGLE)]
            step = (EVIDENCE - 1) // row.shape.tokens
            self.totals.evidence[circuit, at, ::step] += row.evidence
            active = self.totals.active[self._nodes[circuit]]
            active += row.part("pairs")[diagonal(len(active))]
            scores[circuit] += row.part("scores")
        which, bins = np.nonzero(scores)
        self.scores.add(which, self._shown[which, bins], scores[which, bins])

    def succeed(self, before: CircuitCounts) -> None:
        """Go on where the counts of the plan before stopped, circuit by circuit, as long as it is the very same."""
        for new, spec in enumerate(self._spec):
            old = before._spec.index(spec) if spec in before._spec else None
            if old is None or self.totals.single.shape[1] != before.totals.single.shape[1]:
                continue
            self.totals.single[new], self.totals.evidence[new] = before.totals.single[old], before.totals.evidence[old]
            self.totals.active[self._nodes[new]] = before.totals.active[before._nodes[old]]
            self.scores.take(new, before.scores, old)

    def arrays(self) -> list[Array]:
        """As they are published: live, to be copied before the next tick closes."""
        return [self.totals.single, self.totals.evidence, self.totals.active, *self.scores.arrays()]


@cache
def diagonal(nodes: int) -> IndexArray:
    """Where each node stands with itself among its circuit's pairs.

    >>> diagonal(3).tolist()
    [0, 3, 5]
    """
    first, second = np.triu_indices(nodes)
    return np.flatnonzero(first == second)


def _shown(circuit: Circuit) -> npt.NDArray[np.float64]:
    """[64], the middles of its bins. theta is an edge between two bins, so each lies on its own side of one half."""
    step = (circuit.high - circuit.low) / BINS
    middles = circuit.low + step * (np.arange(BINS) + 0.5)
    made: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(circuit.theta - middles))
    return made
