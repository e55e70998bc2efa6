"""Folds of cross-validation: what belongs together stays together, and each class is spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.data.alike import TOGETHER, joined
from probes.data.texts import LabelledText
from probes.errors import LabError
from sidecar.types import BoolArray, IndexArray

FOLDS = 5


def units(texts: Sequence[LabelledText]) -> tuple[str, ...]:
    """Name what each text belongs to: texts that share a group, a pair or their words, directly or through others."""
    heads = joined([_names(text) for text in texts])
    last = {head: text.key for head, text in zip(heads, texts, strict=True)}
    return tuple(last[head] for head in heads)


def _names(text: LabelledText) -> list[str]:
    others = (("group", text.group), ("pair", text.pair))
    return [f"key {text.key}", *(f"{what} {name}" for what, name in others if name)]


def folds(labels: BoolArray, groups: Sequence[str], *, seed: int) -> list[tuple[IndexArray, IndexArray]]:
    """Rows to train on and rows held out, `FOLDS` times or as often as the smaller class has groups.

    Raises LabError if there are too few groups for every fold to have both classes.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len({groups[row] for row in np.flatnonzero(of_class).tolist()}) for of_class in (labels, ~labels))
    if fewest < 2:
        raise LabError(f"cross-validation needs at least two independent texts of each class to train on: {TOGETHER}")
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    splitter = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    found = list(splitter.split(np.zeros(len(labels)), labels, numbers))
    if any(len(np.unique(labels[part])) < 2 for pair in found for part in pair):
        raise LabError(
            f"the {len(set(numbers))} independent groups are too unlike in size for {len(found)} folds of both classes: {TOGETHER}"
        )
    return found
