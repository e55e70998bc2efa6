"""Which nodes are patched if there is no time for all: those that gradients point to, and random ones to see what these miss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.circuits.nodes import Node

TOP = 0.05
# If none of 59 is important, then with 95 % confidence no more than 5 % of those left out are.
FEWEST_RANDOM = 59
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Shortlist:
    """top: the strongest by attribution. random: drawn from all others."""

    top: tuple[Node, ...]
    random: tuple[Node, ...]


def shortlist(attributions: Mapping[Node, float], seed: int, randoms: int = FEWEST_RANDOM) -> Shortlist:
    """The top 5 % by size, whichever way they point, and random ones of the rest; the same for the same seed."""
    ranked = sorted(attributions, key=lambda node: (-abs(attributions[node]), node))
    count = math.ceil(TOP * len(ranked))
    rest = sorted(ranked[count:])
    drawn = np.random.default_rng([seed, 4]).permutation(len(rest))[:randoms]
    return Shortlist(tuple(sorted(ranked[:count])), tuple(rest[index] for index in sorted(drawn)))


def missed_at_most(important: int, drawn: int, left_out: int) -> float:
    """Upper bound of the share of important nodes among ``left_out``, of which ``drawn`` random ones had ``important``.

    Clopper and Pearson's, one-sided, with 95 % confidence; nothing is left to chance once all were looked at.

    >>> round(missed_at_most(0, 59, 1000), 3), missed_at_most(0, 10, 10)
    (0.05, 0.0)
    """
    from scipy.stats import beta

    if drawn >= left_out:
        return important / left_out if left_out else 0.0
    if important >= drawn:
        return 1.0
    return float(beta.ppf(CONFIDENCE, important + 1, drawn - important))


def pearson(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None for fewer than three values, or values that are all alike."""
    if len(one) < 3 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
