"""A behaviour on contrast pairs with nodes ablated: how well it is done, and what nodes put out meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.causal.acting import Act
from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast
from probes.circuits.replacing import Ablation, ablation, replacing
from probes.circuits.running import Below, Decoder, Group, groups
from sidecar.types import FloatArray, TapPoint

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
_REST = 4  # blocks between those from which a run may go on: states of all of them would be kept


@dataclass(frozen=True, slots=True)
class _Ready:
    """A group of pairs, what its nodes put out when ablated, and states that runs go on from, by layer."""

    group: Group
    values: Mapping[TapPoint, torch.Tensor]
    below: Mapping[int, Below]


class Ablated:
    """Ablates one way on one set of pairs. Calling it is a `Metric`; `rows` looks at the same time.

    universe: every node that will ever be ablated. Memory: a number for each position, coordinate and tap point of the universe.
    """

    def __init__(self, decoder: Decoder, pairs: Sequence[Contrast], kind: Ablation, universe: Collection[Node]) -> None:
        self._decoder = decoder
        self._pairs = len(pairs)
        self.kind = kind
        points = sorted({node.where for node in universe})
        made = list(groups(pairs))
        goes_on = decoder.goes_on(made[0].clean)
        self._ready = [self._prepared(group, points, goes_on=goes_on) for group in made]

    def __call__(self, ablated: frozenset[Node]) -> Array:
        """Each pair's metric, [P]."""
        return self.rows(ablated, ())[0]

    def rows(self, ablated: Iterable[Node], points: Sequence[TapPoint]) -> tuple[Array, dict[TapPoint, FloatArray]]:
        """Metrics [P], and each clean prompt's row at its last position at these tap points, [P, width]: what a tap would see."""
        nodes = frozenset(ablated)
        metrics = np.empty(self._pairs)
        seen: dict[TapPoint, FloatArray] = {}
        for ready in self._ready:
            caught: dict[TapPoint, FloatArray] = {}
            acts = dict(replacing(nodes, ready.values, self._decoder.heads))
            for point in points:
                acts[point] = _looking(acts.get(point), point, ready.group.clean.ends, caught)
            below = self._start(ready, {*(node.where.layer for node in nodes), *(point.layer for point in points)})
            found = self._decoder.metrics(ready.group.clean, acts, below).numpy()
            metrics[list(ready.group.pairs)] = found
            for point, rows in caught.items():
                seen.setdefault(point, np.empty((self._pairs, rows.shape[1]), np.float32))[list(ready.group.pairs)] = (
                    rows
                )
        return metrics, seen

    def given(self, points: Sequence[TapPoint]) -> dict[TapPoint, FloatArray]:
        """What an ablated node puts out at each prompt's last position, as whole rows [P, width]."""
        import torch

        found: dict[TapPoint, FloatArray] = {}
        for ready in self._ready:
            clean = ready.group.clean
            for point in points:
                values = ready.values[point].expand(len(clean), clean.ids.shape[1], -1)
                rows = values[torch.arange(len(clean)), clean.ends].float().numpy()
                found.setdefault(point, np.empty((self._pairs, rows.shape[1]), np.float32))[list(ready.group.pairs)] = (
                    rows
                )
        return found

    def _prepared(self, group: Group, points: Sequence[TapPoint], *, goes_on: bool) -> _Ready:
        values = ablation(self.kind, self._decoder, points, group.corrupt)
        layers = range(_REST, self._decoder.layers, _REST) if goes_on else ()
        _, states = self._decoder.read(group.clean, [TapPoint(layer - 1) for layer in layers])
        return _Ready(group, values, {layer: Below(layer, states[TapPoint(layer - 1)]) for layer in layers})

    @staticmethod
    def _start(ready: _Ready, touched: set[int]) -> Below | None:
        """The last kept states before any layer that is changed or looked at."""
        first = min(touched, default=0)
        return ready.below.get(max((layer for layer in ready.below if layer <= first), default=0))


def _looking(act: Act | None, point: TapPoint, ends: torch.Tensor, caught: dict[TapPoint, FloatArray]) -> Act:
    def looking(states: torch.Tensor) -> torch.Tensor:
        import torch

        given = states if act is None else act(states)
        caught[point] = given[torch.arange(len(ends)), ends].detach().float().numpy().copy()
        return given

    return looking
