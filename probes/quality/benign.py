"""Benign rows beyond those of the data: for a low rate, a threshold needs more of them than a labelled set has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.data.alike import alike_groups
from probes.errors import LabError
from probes.quality.rows import Rows, rows_at
from probes.stages import Places
from sidecar.types import BoolArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

_SAME = ("model", "skip_positions", "token_span", "chat", "chat_template_digest")


def added_benign(own: ActivationStore, other: ActivationStore, everywhere: Places) -> Rows:
    """Take the negative rows of another store that are like none of the draft's own, whatever that one was used for.

    Raises LabError if they were not read from the same model, at the same tap points and in the same way, or if none is left.
    """
    _check_same(own, other, everywhere)
    known = _known(own, other)
    kept = [at for at, text in enumerate(other.texts) if not text.label and not known[at]]
    if not kept:
        raise LabError(f"{other.folder} has no negative text that is unlike all those of {own.folder}")
    return rows_at(other, kept)


def independent(rows: Rows) -> BoolArray:
    """The first row of each group: near-duplicates are one observation, not many. Bool [n]."""
    found = np.zeros(len(rows), dtype=np.bool_)
    found[np.unique(rows.groups, return_index=True)[1]] = True
    return found


def _known(own: ActivationStore, other: ActivationStore) -> BoolArray:
    """Which texts of the other store are like one of its own, bool [n]."""
    texts = [text.text for store in (own, other) for text in store.texts]
    sets = [str(store.folder) for store in (own, other) for _ in store.texts]
    heads = np.array(alike_groups(texts, [()] * len(texts), sets))
    return np.isin(heads[len(own.texts) :], heads[: len(own.texts)])


def _check_same(own: ActivationStore, other: ActivationStore, everywhere: Places) -> None:
    missing = [where.name for where in everywhere if where.name not in other.facts.tap_points]
    if missing:
        has = ", ".join(other.facts.tap_points)
        raise LabError(f"{other.folder} has no rows of {', '.join(missing)}, only of {has}")
    for name in _SAME:
        want, got = getattr(own.facts, name), getattr(other.facts, name)
        if want != got:
            raise LabError(f"{other.folder} was not collected as {own.folder} was: {name} is {got}, want {want}")
