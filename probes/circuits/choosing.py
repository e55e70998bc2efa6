"""Which nodes a circuit is made of, chosen by exact effects; and which of them are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.circuits.draft import DraftCircuit, NodeEffect
from probes.circuits.manifest import NODES, WATCHED
from probes.circuits.nodes import Node
from probes.circuits.readouts import Look, energy, mass_mean, raw
from probes.errors import LabError
from sidecar.types import FloatArray, Site, TapPoint

Array = npt.NDArray[np.float64]
States: TypeAlias = Mapping[TapPoint, FloatArray]
Way: TypeAlias = Callable[[States, States], Look]  # from rows on engaged tokens and on traffic
SHARE = 0.1  # of the behaviour, that a node surely takes away alone, from which on it belongs to the circuit
MOST_WATCHED = 8
RESAMPLES = 1000
_WORTH_A_NORM = 0.02  # AUROC, that a norm must be ahead: it takes a column for each of the head's coordinates
TELLING = 0.9  # AUROC of a node's own reading, from which on it is worth a column


@dataclass(frozen=True, slots=True)
class Chosen:
    """Nodes of a circuit, and the share of the behaviour that each alone takes away; the strongest first."""

    nodes: tuple[Node, ...]
    effects: tuple[float, ...]


def choose(draft: DraftCircuit, share: float = SHARE) -> Chosen:
    """The nodes whose patching alone takes at least ``share`` of the behaviour away: by the discovery's exact effects, and surely.

    Surely: the lower end of the 95 % bootstrap interval of the mean effect, over pairs, is as large. The strongest first. Raises
    LabError if there is none, or more than a circuit may have.
    """
    nodes, effects = draft.measured  # [N, P]
    drawn = np.random.default_rng(draft.seed).integers(0, effects.shape[1], (RESAMPLES, effects.shape[1]))
    surely = np.quantile(effects[:, drawn].mean(axis=2), 0.025, axis=1) / draft.gap
    means = effects.mean(axis=1) / draft.gap
    places = [int(place) for place in np.argsort(-means, kind="stable") if surely[place] >= share]
    if not places:
        raise LabError(f"no node of {draft.name} surely takes {share:.0%} of the behaviour away: lower --share")
    if len(places) > NODES:
        raise LabError(
            f"{len(places)} nodes of {draft.name} are too many, a circuit has at most {NODES}: raise --share"
        )
    return Chosen(tuple(nodes[place] for place in places), tuple(float(means[place]) for place in places))


def acting(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The heads among a circuit's nodes; all of them if it has none.

    They are what is watched, and what is ablated to see whether a text uses the circuit: without a block's MLP hardly any text does
    as well, and a direction in what an MLP puts out tells what a text is about before it tells what is done with it.
    """
    heads = tuple(node for node in nodes if node.head is not None)
    return heads or tuple(nodes)


def ranked(draft: DraftCircuit) -> tuple[Node, ...]:
    """All nodes that were asked about: by effect, those that help the most first; then the others, by attribution."""

    def place(one: NodeEffect) -> tuple[bool, float, str]:
        known = one.effect if one.effect is not None else one.attribution
        return one.effect is None, -(known or 0.0), one.node

    return tuple(Node.parse(one.node) for one in sorted(draft.nodes, key=place))


def looks(nodes: Sequence[Node], engaged: States, idle: States, heads: int, most: int = MOST_WATCHED) -> list[Look]:
    """The nodes that tell engaged tokens from traffic, each read its own way: heads by energy, all others along a direction.

    engaged, idle: rows [P, width] and [T, width] by tap point. At most ``most``, the most telling; at least the best one. How
    telling a way to read is, is judged on engaged tokens that it was not fitted on.
    """
    best = [_best_way(node, engaged, idle, heads) for node in nodes]
    order = sorted(range(len(nodes)), key=lambda place: (-best[place][0], place))[: min(most, WATCHED)]
    kept = [place for place in order if best[place][0] >= TELLING] or order[:1]
    return [best[place][1](engaged, idle) for place in sorted(kept)]


def _best_way(node: Node, engaged: States, idle: States, heads: int) -> tuple[float, Way]:
    """How to read a node, and the AUROC of that: fitted on every other engaged token, judged on the rest."""
    half, rest = ({point: rows[side::2] for point, rows in engaged.items()} for side in (0, 1))
    told = [(_telling(way(half, idle), rest, idle, heads), lead, way) for lead, way in _ways(node, heads)]
    found, _, way = max(told, key=lambda one: one[0] + one[1])
    return found, way


def _ways(node: Node, heads: int) -> list[tuple[float, Way]]:
    """Each with a lead: columns are cheaper to read than a norm, which must be worth it."""

    def columns(engaged: States, _idle: States) -> Look:
        rows = engaged[node.where].astype(np.float64)
        return energy(node, node.span(rows.shape[1], heads), rows)

    def norm(engaged: States, _idle: States) -> Look:
        rows = engaged[node.where].astype(np.float64)
        return energy(node, node.span(rows.shape[1], heads), rows, 0)

    def direction(engaged: States, idle: States) -> Look:
        own, other = engaged[node.where].astype(np.float64), idle[node.where].astype(np.float64)
        return mass_mean(node, node.span(own.shape[1], heads), own, other)

    return [(_WORTH_A_NORM, columns), (0.0, norm)] if node.where.site is Site.ATTN_HEADS else [(0.0, direction)]


def _telling(look: Look, engaged: States, idle: States, heads: int) -> float:
    own, other = (raw([look], states, heads)[0] for states in (engaged, idle))
    return auroc(np.concatenate([own, other]), np.arange(len(own) + len(other)) < len(own))
