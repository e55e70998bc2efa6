"""Make a shipped positive control: rows of many kinds of text, among them answers that the model wrote, around one block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.artifact import save_artifact
from probes.build import binding
from probes.collect import LabModel, chat_ids, collect, generate
from probes.control import Control, fit_control, rows_of
from probes.datasets import Split, load_examples
from probes.manifest import Manifest
from probes.prompts import EVERYDAY
from probes.recipes import PROBES, TEXT_LIMIT, ControlRecipe
from probes.states import States

if TYPE_CHECKING:
    from rich.progress import Progress

ANSWER_TOKENS = 48
TEXTS_PER_SET = 50


def everyday_chats(lab: LabModel, bars: Progress) -> list[list[int]]:
    """Token ids of the everyday prompts with the model's own answers: every control is made from the same."""
    return generate(lab, EVERYDAY, ANSWER_TOKENS, bars)


def build_control(
    recipe: ControlRecipe, lab: LabModel, folder: Path, bars: Progress, chats: Sequence[list[int]]
) -> Manifest:
    """Fit on one half of the rows, measure on the other, save in ``folder``."""
    train = [*chats[::2], *_labelled_ids(lab, Split.TRAIN)]
    held_out = [*chats[1::2], *_labelled_ids(lab, Split.TEST)]
    near = (recipe.layer, *recipe.neighbours)
    rows = collect(lab, train, near, bars)
    control = fit_control({layer: rows_of(rows[layer], range(len(train))) for layer in near}, recipe.layer)
    outside = _outside(control, collect(lab, held_out, near, bars))
    fields = binding(lab, recipe.layer) | _control_fields(recipe, control, outside, train, held_out)
    fields["feature_contract"] |= {"token_span": "all"}
    offsets = np.array([control.direction.offset], np.float32)
    return save_artifact(folder, fields, control.direction.direction[:, None], offsets)


def _labelled_ids(lab: LabModel, split: Split) -> list[list[int]]:
    """The first texts of a split of every probe's set: reviews, tweets and text messages."""
    texts: list[str] = []
    for probe in PROBES:
        of_split = [example.text for example in load_examples(probe.source, limit=TEXT_LIMIT) if example.split is split]
        texts.extend(of_split[:TEXTS_PER_SET])
    return [chat_ids(lab, text) for text in texts]


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
    others = ", ".join(f"{outside[layer]:.0%} at block {layer}" for layer in sorted(recipe.neighbours))
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
