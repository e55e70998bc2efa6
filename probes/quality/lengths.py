"""Whether a score reads the label, or how long the text is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.quality.bootstrap import Interval, Ranking, Resamples, share
from probes.quality.rows import Rows
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
_ALIKE = 1.1
_STRATA = 4
_FEWEST_MATCHED = 10


@dataclass(frozen=True, slots=True)
class Matched:
    """AUROC over pairs of texts of like length, with its interval. rows: of either class, in bins that have both."""

    auroc: float
    interval: Interval
    rows: int


def matched_auroc(scores: Array, rows: Rows, resamples: Resamples) -> Matched | None:
    """How often a positive lies above a negative of like length: both within the same bin, a tenth of the length wide.

    scores: float64 [n]; resamples: of the same rows. None if bins with both classes hold fewer than ten texts of either: then
    the lengths tell the classes apart, and nobody can say what else does.
    """
    bins = [bin_ for bin_ in _bins(rows.tokens) if rows.labels[bin_].any() and not rows.labels[bin_].all()]
    some = np.concatenate([np.empty(0, np.intp), *bins])
    if min(rows.labels[some].sum(), (~rows.labels[some]).sum()) < _FEWEST_MATCHED:
        return None
    ranked = [(bin_, Ranking.of(scores[bin_], rows.labels[bin_])) for bin_ in bins]

    def statistic(drawn: Array) -> Array:
        above, every = np.sum([ranking.pairs(drawn[:, bin_]) for bin_, ranking in ranked], axis=0)
        return share(above, every)

    value = float(statistic(np.ones((1, len(scores))))[0])
    return Matched(value, resamples.interval(statistic), len(some))


def strata(scores: Array, rows: Rows) -> tuple[tuple[str, int, float], ...]:
    """(tokens from-to, rows, AUROC) of quarters by length; a quarter with fewer than five texts of a class is left away."""
    edges = np.unique(np.quantile(rows.tokens, np.linspace(0, 1, _STRATA + 1)).round().astype(np.intp))
    found = []
    for at, low in enumerate(edges[:-1]):
        high = int(edges[at + 1]) - (at + 2 < len(edges))  # the last has both its ends
        part: BoolArray = (rows.tokens >= low) & (rows.tokens <= high)
        some = rows.only(part)
        if some.both:
            found.append((f"{low}-{high}", len(some), auroc(scores[part], some.labels)))
    return tuple(found)


def _bins(tokens: IndexArray) -> list[IndexArray]:
    """Rows by length, a bin from each power of 1.1 to the next; up to ten tokens each length is its own."""
    place = np.where(tokens <= 10, tokens, 10 + np.floor(np.log(np.maximum(tokens, 1) / 10) / np.log(_ALIKE) + 1e-9))
    return [np.flatnonzero(place == one) for one in np.unique(place)]
