"""Whether a score reads its circuit: what moves it on engaged tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.circuits.findings import ReadoutValidity
from probes.circuits.nodes import Node

Array = npt.NDArray[np.float64]
MOST = 1e6
# Gets the nodes that are ablated; returns the score of each engaged token, [P].
Scores = Callable[[frozenset[Node]], Array]


def validity(scores: Scores, circuit: Collection[Node], others: Collection[Node], idle: Array) -> ReadoutValidity:
    """The effect of ablating the circuit on the mean score over the effect of the worst node outside it, each ablated alone.

    idle: scores [T] on traffic without the circuit. The circuit's effect counts at most as far as the mean of these: a node that is
    replaced by its mean puts out what no token ever does, and a score that falls below all traffic says no more for it.

    >>> a, b = (Node.parse(f"blocks.0.attn_heads.{head}") for head in (0, 1))
    >>> reading = lambda ablated: np.array([6.0 - 9.0 * (a in ablated) + 0.5 * (b in ablated)] * 4)
    >>> validity(reading, [a], [b], np.zeros(3)).ratio
    12.0
    """
    before = scores(frozenset())
    mean, quiet = float(before.mean()), float(idle.mean())
    after = float(scores(frozenset(circuit)).mean())
    own = max(0.0, mean - max(after, min(quiet, mean)))
    moved = {node: abs(mean - float(scores(frozenset({node})).mean())) for node in sorted(others)}
    worst = max(moved, key=lambda node: (moved[node], node.name))
    return ReadoutValidity(
        gap=mean - quiet,
        circuit=own,
        worst=moved[worst],
        worst_node=worst.name,
        others=len(moved),
        ratio=_ratio(own, moved[worst]),
        auroc=auroc(np.concatenate([before, idle]), np.arange(len(before) + len(idle)) < len(before)),
    )


def _ratio(own: float, worst: float) -> float:
    return min(own / worst, MOST) if worst > 0 else MOST * (own > 0)
