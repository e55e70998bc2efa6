"""Nodes that write something else than they did: nothing, less or more of it, or what they write on average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from probes.activations.sites import find_sockets
from probes.causal.acting import Act, acting_at
from probes.circuits.nodes import Node
from probes.circuits.universe import heads_of
from sidecar.types import FloatArray, TapPoint
from tests.circuits.zoo.pools import states_of

_MEANS_OF = 16  # texts


@dataclass(frozen=True, slots=True)
class Instead:
    """kept: the factor of what a node writes; mean_of: texts whose mean takes the place of what is not kept, else nothing does."""

    kept: float
    mean_of: Sequence[Sequence[int]] = ()


@contextmanager
def acting(model: Any, nodes: Sequence[Node], instead: Instead) -> Iterator[Any]:
    """The model itself, with these nodes changed while it is open."""
    means = _means(model, nodes, instead.mean_of)
    with ExitStack() as hooks:
        for node in nodes:
            (socket,) = find_sockets(model, [node.where])
            mean = means.get(node.where)
            hooks.enter_context(acting_at(socket, _changing(node, heads_of(model), instead.kept, mean)))
        yield model


def _changing(node: Node, heads: int, kept: float, mean: torch.Tensor | None) -> Act:
    def act(states: torch.Tensor) -> torch.Tensor:
        made, own = states.clone(), node.span(states.shape[-1], heads)
        made[..., own] *= kept
        if mean is not None:
            made[..., own] += (1 - kept) * mean[own]
        return made

    return act


def _means(model: Any, nodes: Sequence[Node], texts: Sequence[Sequence[int]]) -> dict[TapPoint, torch.Tensor]:
    """Of the rows of each tap point, [width], over as much of each text as the shortest has. Empty without texts."""
    if not texts:
        return {}
    least = min(map(len, texts))
    points = sorted({node.where for node in nodes})
    told = states_of(model, [text[:least] for text in texts[:_MEANS_OF]], points)
    return {where: _mean(states) for where, states in told.items()}


def _mean(states: FloatArray) -> torch.Tensor:
    return torch.from_numpy(states.mean(axis=(0, 1)))
