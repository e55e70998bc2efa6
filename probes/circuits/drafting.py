"""How a discovery is asked for, and the draft that is written of what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import get_args

import numpy as np
import numpy.typing as npt

from probes.circuits.draft import Chosen, DraftCircuit, Method, Missed, NodeEffect, Trace
from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast, pairs_digest
from probes.circuits.shortlist import FEWEST_RANDOM, Shortlist, missed_at_most, pearson
from probes.errors import LabError
from probes.manifest.binding import ModelBinding

Array = npt.NDArray[np.float64]
METRIC = "log sum exp of the right answers' logits less that of the wrong ones', after the clean prompt"


@dataclass(frozen=True, slots=True)
class Settings:
    """method: None for whichever the budget allows. budget_s: CPU seconds that patching every node may take.

    steps: of the attribution; where every node is patched it is made only if ``attribute``. important: see `DraftCircuit`.
    traced: pairs that are traced over positions and layers; 0 for none.
    """

    name: str
    method: Method | None = None
    budget_s: float = 600.0
    steps: int = 5
    attribute: bool = False
    randoms: int = FEWEST_RANDOM
    important: float = 0.05
    traced: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raises LabError for what could not work."""
        if self.randoms < FEWEST_RANDOM:
            raise LabError(f"fewer than {FEWEST_RANDOM} random nodes cannot show that few important ones were missed")
        if not 0 < self.important < 1:
            raise LabError("the important share must lie between 0 and 1")
        if not (0 < self.steps <= 64 and self.budget_s > 0 and self.traced >= 0 and self.seed >= 0):
            raise LabError(
                "want 1 to 64 steps, a budget above 0 seconds, no negative number of traced pairs, no negative seed"
            )
        if self.method is not None and self.method not in get_args(Method):
            raise LabError(f"no such method: {self.method}")


@dataclass(frozen=True, slots=True)
class Found:
    """nodes: all that were asked about, in order. clean, corrupt: metrics [P]. effects: [P] each, of the nodes that were patched.

    picked: None if that was every node.
    """

    nodes: tuple[Node, ...]
    clean: Array
    corrupt: Array
    attributions: Mapping[Node, float]
    effects: Mapping[Node, Array]
    picked: Shortlist | None
    trace: Trace | None
    reuse: bool


def drafted(settings: Settings, model: ModelBinding, pairs: Sequence[Contrast], found: Found) -> DraftCircuit:
    """Nodes that were patched come first, the strongest of them at the top; then the others by attribution."""
    both = [node for node in found.effects if node in found.attributions]
    effects = [float(found.effects[node].mean()) for node in both]
    return DraftCircuit(
        name=settings.name,
        model=model,
        pairs=len(pairs),
        pairs_digest=pairs_digest(pairs),
        metric=METRIC,
        clean=float(found.clean.mean()),
        corrupt=float(found.corrupt.mean()),
        method="exact" if found.picked is None else "prefilter",
        steps=settings.steps if found.attributions else 0,
        seed=settings.seed,
        important=settings.important,
        nodes=tuple(_node_effect(node, found) for node in sorted(found.nodes, key=lambda node: _place(node, found))),
        pearson=pearson(effects, [found.attributions[node] for node in both]),
        missed=None if found.picked is None else _missed(found, found.picked, settings.important),
        reuse=found.reuse,
        trace=found.trace,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _place(node: Node, found: Found) -> tuple[bool, float, Node]:
    effect = found.effects.get(node)
    size = found.attributions[node] if effect is None else float(effect.mean())
    return effect is None, -abs(size), node


def _node_effect(node: Node, found: Found) -> NodeEffect:
    effect = found.effects.get(node)
    return NodeEffect(
        node=node.name,
        effect=None if effect is None else float(effect.mean()),
        by_pair=None if effect is None else tuple(effect.tolist()),
        attribution=found.attributions.get(node),
        chosen=None if effect is None else _why(node, found.picked),
    )


def _why(node: Node, picked: Shortlist | None) -> Chosen:
    if picked is None:
        return "all"
    return "top" if node in picked.top else "random"


def _missed(found: Found, picked: Shortlist, share: float) -> Missed:
    limit = share * float(found.clean.mean() - found.corrupt.mean())
    important = sum(abs(float(found.effects[node].mean())) >= limit for node in picked.random)
    at_most = missed_at_most(important, len(picked.random), len(found.nodes) - len(picked.top))
    return Missed(random=len(picked.random), important=important, at_most=at_most)
