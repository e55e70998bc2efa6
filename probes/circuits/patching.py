"""What each node carries of a behaviour: by exact patching, and by a gradient's estimate of it.

An effect is m(clean) - m(clean run, in which the node puts out what it does on the corrupt prompt): what is lost without it, in
the metric's units. It is positive for a node that carries the behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast
from probes.circuits.replacing import one_each
from probes.circuits.running import Below, Decoder, Group, groups
from sidecar.types import TapPoint

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
# Tokens of one forward pass. On one core 360 of them are as fast a token as 3,300; more only take memory.
_PASS_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Untouched:
    """What untouched runs over a group of pairs leave. clean, corrupt: metrics [B]; values: what nodes put out on corrupt prompts.

    below: what each block puts out on clean prompts; empty if the model cannot go on from there.
    """

    group: Group
    clean: torch.Tensor
    corrupt: torch.Tensor
    values: dict[TapPoint, torch.Tensor]
    below: dict[TapPoint, torch.Tensor]

    def start(self, layer: int, times: int) -> Below | None:
        """Where a run of all prompts ``times`` times over goes on that changes nothing below block ``layer``."""
        states = self.below.get(TapPoint(layer - 1)) if layer else None
        return None if states is None else Below(layer, states.repeat(times, 1, 1))


class Patching:
    """One decoder and its contrast pairs. Memory: numbers for each position of a group and coordinate of three states a block.

    clean, corrupt: metrics of the untouched runs, [P]. goes_on: whether runs go on from where they change something.
    """

    def __init__(self, decoder: Decoder, pairs: Sequence[Contrast], points: Sequence[TapPoint]) -> None:
        self.decoder = decoder
        made = list(groups(pairs))
        self.goes_on = decoder.goes_on(made[0].clean)
        self._runs = [self._untouched(group, points) for group in made]
        self._pairs = len(pairs)
        self.clean = self._together([run.clean.numpy()[None] for run in self._runs])[0]
        self.corrupt = self._together([run.corrupt.numpy()[None] for run in self._runs])[0]

    def exact(self, nodes: Sequence[Node]) -> Array:
        """The effects [n, P] of nodes of one tap point, each patched alone."""
        return self._together([self._patched(run, nodes) for run in self._runs])

    def attributed(self, nodes: Sequence[Node], steps: int) -> Array:
        """Their effects as gradients tell them, [n, P]: EAP-IG on activations.

        All nodes of the tap point go along a straight line from what they put out on the clean prompt to what they do on the
        corrupt one; each gets the integral of the metric's gradient along its own part of the way. Summed over the tap point's
        nodes that is the effect of patching all of them at once; how it is shared among them is the estimate. The integral is
        Gauss and Legendre's, at ``steps`` places.
        """
        return self._together([self._attributed(run, nodes, steps) for run in self._runs])

    def _untouched(self, group: Group, points: Sequence[TapPoint]) -> Untouched:
        blocks = [TapPoint(layer) for layer in range(self.decoder.layers - 1)] if self.goes_on else []
        clean, below = self.decoder.read(group.clean, blocks)
        corrupt, values = self.decoder.read(group.corrupt, points)
        return Untouched(group, clean, corrupt, values, below)

    def _patched(self, run: Untouched, nodes: Sequence[Node]) -> Array:
        point = _point(nodes)
        most = max(1, _PASS_TOKENS // run.group.clean.ids.numel())
        found = []
        for first in range(0, len(nodes), most):
            those = nodes[first : first + most]
            acts = {point: one_each(those, run.values[point], self.decoder.heads)}
            prompts, below = run.group.clean.repeated(len(those)), run.start(point.layer, len(those))
            metrics = self.decoder.metrics(prompts, acts, below).reshape(len(those), -1)
            found.append((run.clean - metrics).numpy())
        return np.concatenate(found)

    def _attributed(self, run: Untouched, nodes: Sequence[Node], steps: int) -> Array:
        point = _point(nodes)
        places, weights = np.polynomial.legendre.leggauss(steps)
        found = np.zeros((len(nodes), len(run.group.pairs)))
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            # [B, T, width]: how much each coordinate's way, at the slope found here, lowers the metric.
            lost = self._slope(run, point, float(place))
            for number, node in enumerate(nodes):
                span = node.span(lost.shape[-1], self.decoder.heads)
                found[number] += weight * lost[..., span].double().sum(dim=(1, 2)).numpy()
        return found

    def _slope(self, run: Untouched, point: TapPoint, place: float) -> torch.Tensor:
        way: list[torch.Tensor] = []

        def act(states: torch.Tensor) -> torch.Tensor:
            ahead = run.values[point] - states.detach()
            there = (states.detach() + place * ahead).requires_grad_()
            way.extend((there, ahead))
            return there

        metrics = self.decoder.metrics(run.group.clean, {point: act}, run.start(point.layer, 1), gradients=True)
        metrics.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        there, ahead = way
        if there.grad is None:
            raise AssertionError("a metric hangs on every state")
        return -there.grad * ahead

    def _together(self, found: Sequence[Array]) -> Array:
        """[n, P] in the pairs' own order."""
        whole = np.empty((len(found[0]), self._pairs))
        for run, part in zip(self._runs, found, strict=True):
            whole[:, list(run.group.pairs)] = part
        return whole


def _point(nodes: Sequence[Node]) -> TapPoint:
    (point,) = {node.where for node in nodes}
    return point
