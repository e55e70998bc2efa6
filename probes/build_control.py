"""Make a shipped positive control: rows of many kinds of text, among them answers that the model wrote, around one block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.artifact import save_artifact
from probes.collect import LabModel, chat_ids, collect, generate
from probes.control import SKIP_POSITIONS, Control, fit_control, rows_of
from probes.datasets import Source, Split, load_examples
from probes.manifest import Manifest
from probes.prompts import EVERYDAY
from probes.recipe import LAYERS
from probes.states import States
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_TOKENS = 48
TEXTS_PER_SET = 50
TEXT_LIMIT = 2000
VERSION = "1.0.0"
LICENCE = "Apache-2.0"
# Reviews, tweets and text messages. The other fields of a set are of no account here.
SETS = (
    Source("92_glue_sst2.csv.zst", "", "", "", ""),
    Source("107_hate_offensive.csv.zst", "", "", "", "", tweets=True, exclude="106_hate_hate.csv.zst"),
    Source("96_spam_is.csv.zst", "", "", "", ""),
)


@dataclass(frozen=True, slots=True)
class ControlRecipe:
    """A positive control for one layer, told apart from the layers up to ``reach`` blocks away."""

    layer: int
    reach: int = 2

    @property
    def name(self) -> str:
        return f"control_{self.layer:02d}"

    @property
    def neighbours(self) -> tuple[int, ...]:
        first = max(0, self.layer - self.reach)
        return tuple(layer for layer in range(first, self.layer + self.reach + 1) if layer != self.layer)


CONTROLS = tuple(ControlRecipe(layer) for layer in LAYERS)


def everyday_chats(lab: LabModel, bars: Progress) -> list[list[int]]:
    """Token ids of the everyday prompts with the model's own answers: every control is made from the same."""
    return generate(lab, EVERYDAY, ANSWER_TOKENS, bars)


def build_control(
    recipe: ControlRecipe,
    lab: LabModel,
    folder: Path,
    bars: Progress,
    chats: Sequence[list[int]],
    texts: Sequence[str] = (),
) -> Manifest:
    """Fit on one half of the rows, measure on the other, save in ``folder``.

    texts: besides the chats, as the model's users may send them; those of `SETS` if none are given.
    """
    train, held_out = (
        [*chats[half::2], *(chat_ids(lab, text) for text in texts[half::2] or _labelled(split))]
        for half, split in enumerate((Split.TRAIN, Split.TEST))
    )
    near = (recipe.layer, *(layer for layer in recipe.neighbours if layer < lab.identity.layers))
    rows = collect(lab, train, near, bars)
    control = fit_control({layer: rows_of(rows[layer], range(len(train))) for layer in near}, recipe.layer)
    outside = _outside(control, collect(lab, held_out, near, bars))
    fields = binding(lab, recipe.layer) | _control_fields(recipe, control, outside, train, held_out)
    fields["feature_contract"] |= {"token_span": "all"}
    offsets = np.array([control.direction.offset], np.float32)
    return save_artifact(folder, fields, control.direction.direction[:, None], offsets)


def binding(lab: LabModel, layer: int) -> dict[str, Any]:
    """What an artifact made on this model says about it."""
    model = lab.identity
    return {
        "version": VERSION,
        "licence": LICENCE,
        "tap_point": TapPoint(layer).name,
        "feature_contract": {
            "hook_point": f"output of decoder block {layer}: the residual stream before any norm",
            "width": model.width,
            "token_span": "prompt",
            "skip_positions": SKIP_POSITIONS,
            "chat_template_digest": lab.template_digest,
        },
        "model": {
            "name": model.name,
            "architecture": model.architecture,
            "layers": model.layers,
            "weights_digest": model.weights_digest,
            "tokenizer_digest": model.tokenizer_digest,
            "dtype": model.dtype,
            "quantisation": model.quantisation,
            "engine": model.engine,
        },
    }


def _labelled(split: Split) -> list[str]:
    """The first texts of a split of each set."""
    texts: list[str] = []
    for source in SETS:
        of_split = [example.text for example in load_examples(source, limit=TEXT_LIMIT) if example.split is split]
        texts.extend(of_split[:TEXTS_PER_SET])
    return texts


def _outside(control: Control, states: dict[int, States]) -> dict[int, float]:
    """Share of rows that read out of range at each layer, had the hook been there."""
    found = {}
    for layer, of_layer in states.items():
        rows = rows_of(of_layer, range(len(of_layer)))
        found[layer] = control.range.outside(control.direction.read(rows))
    return found


def _control_fields(
    recipe: ControlRecipe,
    control: Control,
    outside: dict[int, float],
    train: list[list[int]],
    held_out: list[list[int]],
) -> dict[str, Any]:
    others = ", ".join(f"{outside[layer]:.0%} at block {layer}" for layer in sorted(set(outside) - {recipe.layer}))
    count = sum(len(text) - 1 for text in train)
    return {
        "kind": "positive_control",
        "name": recipe.name,
        "description": (
            "Reads near 0 on every row of this block, whatever the text, and off on rows of other blocks. Of held-out rows, "
            f"read out of range: {outside[recipe.layer]:.1%} here; had the hook sat elsewhere: {others}."
        ),
        "training_data": {
            "name": f"{len(train)} chats, half of the everyday ones with the model's own answers; held out: {len(held_out)}",
            "digest": hashlib.sha256(json.dumps([train, held_out]).encode()).hexdigest(),
            "rows": count,
            "licence": "the probes' own sets, see their manifests; the everyday prompts: Apache-2.0",
        },
        "control_range": {"low": control.range.low, "high": control.range.high, "outside": outside[recipe.layer]},
    }
