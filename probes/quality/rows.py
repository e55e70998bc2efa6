"""Rows of a draft's store by what they are used for, with their labels and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.data.texts import LabelledText
from probes.errors import LabError
from probes.kinds.beside import states_at
from probes.quality.bootstrap import group_numbers
from probes.serving import Served
from probes.stages import Part, Places, Training, named
from probes.training.folds import units
from sidecar.types import BoolArray, IndexArray

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
FEWEST = 5


@dataclass(frozen=True, slots=True)
class Rows:
    """Some texts of a store.

    at: their places there. tokens: int [n], how many of each were read. groups: int [n], the same for texts that belong together.
    """

    at: tuple[int, ...]
    texts: tuple[LabelledText, ...]
    labels: BoolArray
    tokens: IndexArray
    groups: IndexArray

    def __len__(self) -> int:
        return len(self.at)

    def only(self, kept: BoolArray) -> Rows:
        """Those where ``kept``, bool [n], is True."""
        some = np.flatnonzero(kept).tolist()
        return Rows(
            tuple(self.at[row] for row in some),
            tuple(self.texts[row] for row in some),
            self.labels[kept],
            self.tokens[kept],
            self.groups[kept],
        )

    @property
    def both(self) -> bool:
        """Whether each class has rows enough to say anything."""
        return bool(min(self.labels.sum(), (~self.labels).sum()) >= FEWEST)


def rows_at(store: ActivationStore, at: Sequence[int]) -> Rows:
    """Gather the texts at these places of the store."""
    texts = tuple(store.texts[row] for row in at)
    return Rows(
        at=tuple(at),
        texts=texts,
        labels=np.array([text.label for text in texts], dtype=np.bool_),
        tokens=np.asarray(store.lengths)[list(at)].astype(np.intp),
        groups=group_numbers(units(texts)),
    )


def rows_of(store: ActivationStore, training: Training, part: Part) -> Rows:
    """Gather a part of the texts, as training divided them.

    Raises LabError if the store is not the one that was trained on, or the part has fewer than `FEWEST` texts of either class.
    """
    if store.digest != training.store_digest or len(training.parts) != len(store.texts):
        raise LabError(f"{store.folder} has changed since {training.name} was trained on it: train again")
    found = rows_at(store, [at for at, one in enumerate(training.parts) if one is part])
    positives = int(found.labels.sum())
    if not found.both:
        raise LabError(
            f"{store.folder}: {positives} positive and {len(found) - positives} negative texts to {_USES[part]}; "
            f"want at least {FEWEST} of each"
        )
    return found


def scores_of(served: Served, store: ActivationStore, everywhere: Places, rows: Rows) -> Array:
    """Each row's score, float64 [n]. Raises LabError naming the first text whose score is not a number."""
    found = served.scores(states_at(store, everywhere, rows.at))
    if not np.isfinite(found).all():
        bad = rows.at[int(np.flatnonzero(~np.isfinite(found))[0])]
        raise LabError(f"{store.folder}: text {bad} has no finite score at {named(everywhere)}")
    return found


_USES = {
    Part.TRAIN: "train on",
    Part.SELECT: "choose by",
    Part.CALIBRATE: "calibrate on",
    Part.TEST: "test on",
    Part.OUTSIDE: "test on from outside",
    Part.DROPPED: "drop",
}
