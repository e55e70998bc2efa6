"""Causal tracing: which position, at which block and site, carries what makes the answer right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.activations.plan import BATCH_TOKENS
from probes.causal.acting import Act
from probes.circuits.pairs import Contrast
from probes.circuits.running import Below, Decoder, groups
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]


def alike(pairs: Sequence[Contrast], most: int) -> tuple[Contrast, ...]:
    """The first pairs that are as long as the first one, at most ``most``: their positions can be laid on each other."""
    return tuple(pair for pair in pairs if len(pair.clean) == len(pairs[0].clean))[:most]


class Tracing:
    """Pairs of one length. In the corrupt run one position of one tap point is set to what it is in the clean run.

    from_position: before it, no state differs, and nothing is restored.
    """

    def __init__(self, decoder: Decoder, pairs: Sequence[Contrast], *, goes_on: bool) -> None:
        self._decoder = decoder
        self._groups = list(groups(pairs))
        self._goes_on = goes_on
        self.length = len(pairs[0].clean)
        self.from_position = min(pair.differs_at for pair in pairs)

    def restored(self, point: TapPoint) -> Array:
        """By position, which share of clean less corrupt metric comes back, [T]: of means over the pairs."""
        gained, gap = np.zeros(self.length), 0.0
        blocks = [TapPoint(point.layer - 1)] if self._goes_on and point.layer else []
        for group in self._groups:
            clean, values = self._decoder.read(group.clean, [point])
            corrupt, below = self._decoder.read(group.corrupt, blocks)
            gap += float((clean - corrupt).sum())
            most = max(1, BATCH_TOKENS // group.corrupt.ids.numel())
            for first in range(self.from_position, self.length, most):
                those = range(first, min(first + most, self.length))
                start = Below(point.layer, below[blocks[0]].repeat(len(those), 1, 1)) if blocks else None
                acts = {point: _one_position_each(those, values[point])}
                found = self._decoder.metrics(group.corrupt.repeated(len(those)), acts, start)
                gained[list(those)] += (found.reshape(len(those), -1) - corrupt).sum(dim=1).numpy()
        return gained / gap if gap else np.zeros(self.length)


def _one_position_each(positions: Sequence[int], values: torch.Tensor) -> Act:
    """All prompts for the first position, then all for the second: each sets its own. values: [B, T, width]."""

    def act(states: torch.Tensor) -> torch.Tensor:
        changed = states.clone().reshape(len(positions), *values.shape)
        for number, position in enumerate(positions):
            changed[number, :, position] = values[:, position].to(states.dtype)
        return changed.reshape(states.shape)

    return act


def traced_points(layers: int) -> tuple[TapPoint, ...]:
    """The residual stream, the attention and the MLP of every block."""
    return tuple(
        TapPoint(layer, site) for site in (Site.RESID_POST, *(Site.ATTN_HEADS, Site.MLP_OUT)) for layer in range(layers)
    )
