"""What taking nodes away does to a behaviour: faithfulness, completeness, minimality, necessity, and faithfulness over sizes.

All of it rests on one question, `Metric`: how well does the model do the behaviour on each pair if these nodes are ablated?
So every number here can be computed by hand on a model that is a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from probes.circuits.findings import Curve, CurvePoint, Necessity, NodeFinding
from probes.circuits.nodes import Node
from probes.errors import LabError

Array = npt.NDArray[np.float64]
# Gets the nodes that are ablated; returns the behaviour's metric on each pair, [P].
Metric: TypeAlias = Callable[[frozenset[Node]], Array]
# The sizes at which the Mechanistic Interpretability Benchmark compares circuits (Mueller et al., arXiv 2504.13151).
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RESAMPLES = 1000


class Behaviour:
    """A metric on a universe of nodes, with m(M) and m(0) at hand, and every answer kept: ablations are asked again and again.

    Raises LabError if ablating everything does not change the metric: then no share of it means anything.
    """

    def __init__(self, metric: Metric, universe: Collection[Node], seed: int = 0) -> None:
        self.universe = frozenset(universe)
        self._metric = metric
        self._kept: dict[frozenset[Node], Array] = {}
        self.whole = self.without(())
        self.none = self.without(self.universe)
        self._drawn = np.random.default_rng(seed).integers(0, len(self.whole), (RESAMPLES, len(self.whole)))
        if not abs(self.span) > 1e-9 * (1 + abs(float(self.whole.mean()))):
            raise LabError("ablating every node does not change what the model answers: there is nothing to explain")

    @property
    def span(self) -> float:
        """m(M) - m(0)."""
        return float(self.whole.mean() - self.none.mean())

    def without(self, nodes: Iterable[Node]) -> Array:
        """The metric on each pair, [P], with these nodes ablated."""
        ablated = frozenset(nodes)
        if ablated not in self._kept:
            self._kept[ablated] = self._metric(ablated)
        return self._kept[ablated]

    def share(self, values: Array) -> float:
        """(m(X) - m(0)) / (m(M) - m(0)), for the metric's values [P] with only X at work."""
        return float(values.mean() - self.none.mean()) / self.span

    def faithfulness(self, kept: Iterable[Node]) -> float:
        """F(C): of the behaviour the share that is left when only these nodes are at work."""
        return self.share(self.without(self.universe - frozenset(kept)))

    def completeness(self, circuit: Iterable[Node]) -> float:
        """F(M without C): the share that is left when just these nodes are ablated; low if nothing else does their work."""
        return self.share(self.without(circuit))

    def interval(self, upper: Array, lower: Array) -> tuple[float, float]:
        """95 % bootstrap interval, over pairs, of (mean of upper - mean of lower) / (m(M) - m(0))."""
        gaps, spans = (upper - lower)[self._drawn].mean(axis=1), (self.whole - self.none)[self._drawn].mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = gaps / spans
        low, high = np.quantile(shares[np.isfinite(shares)], [0.025, 0.975])
        return float(low), float(high)


def minimality(behaviour: Behaviour, circuit: Sequence[Node]) -> tuple[NodeFinding, ...]:
    """What each node is there for: ablated alone, and spared alone while the rest of the circuit is ablated."""
    return tuple(_node(behaviour, frozenset(circuit), node) for node in circuit)


def _node(behaviour: Behaviour, circuit: frozenset[Node], node: Node) -> NodeFinding:
    alone, spared, all_gone = (behaviour.without(those) for those in ({node}, circuit - {node}, circuit))
    return NodeFinding(
        node=node.name,
        alone=float((behaviour.whole - alone).mean()) / behaviour.span,
        alone_interval=behaviour.interval(behaviour.whole, alone),
        back=float((spared - all_gone).mean()) / behaviour.span,
        back_interval=behaviour.interval(spared, all_gone),
    )


def necessity(
    behaviour: Behaviour, acting: Collection[Node], circuit: Collection[Node], draws: int, seed: int = 0
) -> Necessity:
    """The circuit's nodes that act, beside random sets of as many nodes at each of their sites from outside the circuit.

    p: share of the sets, the circuit counted in, after whose ablation as little or less is left (Phipson and Smyth, 2010).
    Less than nothing counts as nothing: how far the opposite is preferred by what is left of a broken model says nothing.
    """
    others = behaviour.universe - frozenset(circuit)
    random = [behaviour.completeness(drawn) for drawn in random_sets(others, acting, draws, seed)]
    left = behaviour.completeness(acting)
    fewer = sum(max(one, 0.0) <= max(left, 0.0) for one in random)
    interval = behaviour.interval(behaviour.without(acting), behaviour.none)
    return Necessity(left=left, interval=interval, random=tuple(random), p_value=(1 + fewer) / (1 + len(random)))


def random_sets(others: Collection[Node], like: Collection[Node], draws: int, seed: int) -> list[frozenset[Node]]:
    """Random sets of these nodes: of each site as many as are in ``like``, or all there are. The same for one seed."""
    random = np.random.default_rng(seed)
    sites = sorted({node.where.site for node in like})
    wanted = {site: sum(node.where.site is site for node in like) for site in sites}
    at = {site: sorted(node for node in others if node.where.site is site) for site in sites}
    return [
        frozenset(
            at[site][place] for site in sites for place in random.permutation(len(at[site]))[: wanted[site]].tolist()
        )
        for _ in range(draws)
    ]


def curve(behaviour: Behaviour, ranked: Sequence[Node], sizes: Sequence[float] = SIZES) -> Curve:
    """F of the first nodes of ``ranked`` at each size, and the areas under it (CPR) and between it and 1 (CMD).

    A size is a share of all nodes, rounded up: the smallest circuit has one. Straight lines between sizes, from the first
    to the last, over their distance: a circuit that is as good as the model at every size has CPR 1 and CMD 0.
    """
    counts = [min(len(ranked), math.ceil(size * len(ranked) - 1e-9)) for size in sizes]
    shares = [behaviour.faithfulness(ranked[:count]) for count in counts]
    points = tuple(
        CurvePoint(size=size, nodes=count, faithfulness=share)
        for size, count, share in zip(sizes, counts, shares, strict=True)
    )
    return Curve(points=points, cpr=_area(sizes, shares), cmd=_area(sizes, [abs(1 - share) for share in shares]))


def jaccard(effects: Array, circuit: Sequence[int], seed: int = 0, resamples: int = RESAMPLES) -> float:
    """How alike the choice of nodes would be on other pairs: mean Jaccard index over resamples of pairs.

    effects: [N, P], of every node on every pair; circuit: the nodes that were chosen, by number. In each resample as many
    nodes are chosen, by their mean effect.

    >>> jaccard(np.array([[5.0, 6.0], [1.0, 0.0], [0.0, 0.5]]), [0])
    1.0
    """
    random, chosen = np.random.default_rng(seed), set(circuit)
    found = []
    for _ in range(resamples):
        means = effects[:, random.integers(0, effects.shape[1], effects.shape[1])].mean(axis=1)
        again = set(np.argsort(-means, kind="stable")[: len(chosen)].tolist())
        found.append(len(again & chosen) / len(again | chosen))
    return float(np.mean(found))


def _area(sizes: Sequence[float], heights: Sequence[float]) -> float:
    return float(np.trapezoid(heights, sizes)) / (sizes[-1] - sizes[0])
