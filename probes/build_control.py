"""Make a positive control: rows of many kinds of text, among them answers that the model wrote, around one block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.activations.in_memory import states_of
from probes.activations.model import LabModel
from probes.activations.sites import find_sockets
from probes.artifact import save_artifact
from probes.control import SKIP_POSITIONS, Control, fit_control
from probes.control_texts import Halves
from probes.manifest import Manifest, TokenSpan
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

VERSION = "1.0.0"
LICENCE = "Apache-2.0"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ControlRecipe:
    """A positive control for one layer, told apart from the layers up to ``reach`` blocks away."""

    layer: int
    reach: int = 2

    @property
    def name(self) -> str:
        return f"control_{self.layer:02d}"

    @property
    def where(self) -> TapPoint:
        return TapPoint(self.layer)

    def neighbours(self, depth: int) -> tuple[int, ...]:
        """The other layers that its rows are told apart from, of a model of ``depth`` blocks."""
        first, end = max(0, self.layer - self.reach), min(depth, self.layer + self.reach + 1)
        return tuple(layer for layer in range(first, end) if layer != self.layer)


def build_control(recipe: ControlRecipe, lab: LabModel, halves: Halves, folder: Path, bars: Progress) -> Manifest:
    """Fit on the rows of one half, measure on the other's, save in ``folder``. Holds a half's rows in memory, once a layer."""
    layers = (recipe.layer, *recipe.neighbours(lab.identity.layers))
    control = fit_control(block_rows(lab, halves.train, layers, bars), recipe.layer)
    held_out = block_rows(lab, halves.held_out, layers, bars)
    outside = {layer: control.range.outside(control.direction.read(rows)) for layer, rows in held_out.items()}
    fields = _binding(recipe, lab) | _findings(recipe, control, outside) | {"training_data": halves.told()}
    offsets = np.array([control.direction.offset], np.float32)
    return save_artifact(folder, fields, control.direction.direction[:, None], offsets)


def block_rows(lab: LabModel, ids: Sequence[Sequence[int]], layers: Sequence[int], bars: Progress) -> dict[int, Array]:
    """All rows after each layer that a control reads, end to end, float64 [N, D]; every text has more than position 0."""
    states = states_of(lab, ids, [TapPoint(layer) for layer in layers], SKIP_POSITIONS, bars)
    return {point.layer: np.concatenate(rows, dtype=np.float64) for point, rows in states.items()}


def _binding(recipe: ControlRecipe, lab: LabModel) -> dict[str, Any]:
    """Where on which model it is at home."""
    (socket,) = find_sockets(lab.model, [recipe.where])
    return {
        "tap_point": recipe.where.name,
        "feature_contract": {
            "hook_point": socket.words,
            "width": lab.identity.width,
            "token_span": TokenSpan.ALL,
            "skip_positions": SKIP_POSITIONS,
            "chat_template_digest": lab.template_digest,
        },
        "model": lab.binding.model_dump(mode="json"),
    }


def _findings(recipe: ControlRecipe, control: Control, outside: Mapping[int, float]) -> dict[str, Any]:
    others = ", ".join(f"{outside[layer]:.0%} at block {layer}" for layer in sorted(set(outside) - {recipe.layer}))
    return {
        "kind": "positive_control",
        "name": recipe.name,
        "version": VERSION,
        "licence": LICENCE,
        "description": (
            "Reads near 0 on every row of this block, whatever the text, and off on rows of other blocks. Of held-out rows, "
            f"read out of range: {outside[recipe.layer]:.1%} here; had the hook sat elsewhere: {others}."
        ),
        "control_range": {"low": control.range.low, "high": control.range.high, "outside": outside[recipe.layer]},
    }
