"""Whether a score reads the label, or a few words that give it away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.data.texts import normalised
from probes.quality.bootstrap import Interval, Resamples
from probes.quality.rows import Rows
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
WORDS = 10
_ERROR = 0.01  # chance that any word at all is called telling where none is
_ODDS = 3.0
_FEWEST = 10


@dataclass(frozen=True, slots=True)
class Ablated:
    """AUROC on the test texts that have none of the telling words; rival is the best text baseline's there."""

    auroc: float
    interval: Interval
    rival: float
    rows: int


def telling_words(rows: Rows, limit: int = WORDS) -> tuple[str, ...]:
    """The words whose presence tells the label best, the best first, by Pearson's chi-squared on training texts.

    A word counts if it is significant among all the words that were tested (Bonferroni) and makes one label at least three times
    as likely: in many texts even "the" is significant, and leaving out its texts would leave none.
    """
    from scipy.stats import chi2

    places = _places(rows)
    names = sorted(places)
    if not names:
        return ()
    total, positives = len(rows), int(rows.labels.sum())
    have = np.array([len(places[name]) for name in names], dtype=np.float64)
    hits = np.array([rows.labels[places[name]].sum() for name in names], dtype=np.float64)
    cells = np.stack([hits, have - hits, positives - hits, total - positives - have + hits])  # [4, words]
    odds = np.abs(np.log((cells[0] + 0.5) * (cells[3] + 0.5) / ((cells[1] + 0.5) * (cells[2] + 0.5))))
    rest = np.maximum(have * (total - have) * positives * (total - positives), 1)
    value = total * (cells[0] * cells[3] - cells[1] * cells[2]) ** 2 / rest
    telling = (value > chi2.isf(_ERROR / len(names), 1)) & (odds >= np.log(_ODDS))
    order = np.argsort(-np.where(telling, value, -1.0), kind="stable")[: min(limit, int(telling.sum()))]
    return tuple(names[at] for at in order)


def without(rows: Rows, words: Sequence[str]) -> BoolArray:
    """Which texts have none of the words, bool [n]."""
    unwanted = set(words)
    return np.array([unwanted.isdisjoint(normalised(text.text).split()) for text in rows.texts], dtype=np.bool_)


def ablated(scores: Array, rivals: dict[str, Array], rows: Rows, words: Sequence[str], seed: int) -> Ablated | None:
    """Measure on the rows that have none of the words. None if fewer than ten of either class are left."""
    kept = without(rows, words)
    some = rows.only(kept)
    if min(some.labels.sum(), (~some.labels).sum()) < _FEWEST:
        return None
    return Ablated(
        auroc=auroc(scores[kept], some.labels),
        interval=Resamples(some.labels, some.groups, seed).auroc(scores[kept]),
        rival=max(auroc(rival[kept], some.labels) for rival in rivals.values()),
        rows=len(some),
    )


def _places(rows: Rows) -> dict[str, IndexArray]:
    """The texts that have a word, for each word that at least two texts have."""
    found: dict[str, list[int]] = {}
    for at, text in enumerate(rows.texts):
        for word in sorted(set(normalised(text.text).split())):
            found.setdefault(word, []).append(at)
    return {word: np.array(places, dtype=np.intp) for word, places in found.items() if len(places) > 1}
