"""What a probe must be better than, besides text: chance, luck, and the model's first layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.kinds.beside import states_at
from probes.kinds.rows import pooled
from probes.quality.refit import Refit
from probes.quality.rows import Rows
from sidecar.types import BoolArray, TapPoint

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

Array = npt.NDArray[np.float64]
RANDOMS = 1000
SHUFFLES = 10
_AT_ONCE = 100


def shuffled_control(refit: Refit, train: Rows, test: Rows, *, seed: int) -> float:
    """Mean AUROC on true labels after training on shuffled ones: .5 unless something leaks (Hewitt and Liang, 2019).

    Every shuffle is used both ways round. Labels that mean nothing often find the states' own main direction, which may tell
    the classes apart one way or the other: that is luck, and cancels out. What leaks does not.
    """
    fit_and_score, draws = refit.fitter(train, test), np.random.default_rng(seed)
    found = []
    for _ in range(SHUFFLES):
        labels = shuffled_labels(train.labels, draws)
        found += [auroc(fit_and_score(either), test.labels) for either in (labels, ~labels)]
    return float(np.mean(found))


def shuffled_labels(labels: BoolArray, draws: np.random.Generator) -> BoolArray:
    """Labels that agree with the true ones just as often as chance would have it: more often would teach a little of the truth."""
    shuffled = np.zeros_like(labels)
    for of_class in (np.flatnonzero(labels), np.flatnonzero(~labels)):
        count = round(float(labels.mean()) * len(of_class))
        shuffled[draws.permutation(of_class)[:count]] = True
    return shuffled


def random_control(refit: Refit, train: Rows, test: Rows, *, seed: int) -> Array:
    """Test scores, float64 [n], of the best of a thousand random directions, chosen on training rows, either way round.

    They read what a probe on pooled states reads: each text's rows weighted as the aggregation does, or their mean for one that
    is no weighted sum. Directions are N(0, 1) over coordinates in units of their own spread: over raw coordinates the few massive
    ones would rule them all, and they would be one direction a thousand times.
    """
    told = refit.training
    seen, unseen = (
        pooled(states_at(refit.store, told.everywhere, rows.at), told.aggregation) for rows in (train, test)
    )
    spread = seen.std(axis=0)
    directions = np.random.default_rng(seed).standard_normal((seen.shape[1], RANDOMS))
    directions /= np.where(spread > 0, spread, np.inf)[:, None]
    found = _aurocs((seen - seen.mean(axis=0)) @ directions, train.labels)
    best = int(np.abs(found - 0.5).argmax())
    return np.asarray(np.sign(found[best] - 0.5) * (unseen @ directions[:, best]), dtype=np.float64)


def first_point(store: ActivationStore, where: TapPoint) -> TapPoint | None:
    """The lowest tap point of the store, of the same site if there is one; None if none is lower than ``where``, the deepest."""
    lower = [point for point in map(TapPoint.parse, store.facts.tap_points) if point.layer < where.layer]
    return min(lower, key=lambda point: (point.site is not where.site, point.layer), default=None)


def left_out(
    refit: Refit, train: Rows, test: Rows, step: Callable[[], None] = lambda: None
) -> tuple[tuple[str, int, float], ...]:
    """(data set, test rows, AUROC there of the same kind trained on the other sets), for each set that has both classes.

    Nothing if there is one set only. A set whose test rows or whose others' training rows lack a class is left away.
    """
    names = sorted({text.dataset for text in train.texts})
    if len(names) < 2:
        return ()
    found = []
    for name in names:
        others, own = train.only(~_of(train, name)), test.only(_of(test, name))
        if others.both and own.both:
            found.append((name, len(own), auroc(refit.scores(others, own), own.labels)))
        step()
    return tuple(found)


def _of(rows: Rows, name: str) -> BoolArray:
    return np.array([text.dataset == name for text in rows.texts], dtype=np.bool_)


def _aurocs(scores: Array, labels: BoolArray) -> Array:
    """AUROC of every column of scores [n, R]; a column's ranks are a good part of the memory, so some at a time."""
    from scipy.stats import rankdata

    positives, negatives = int(labels.sum()), int((~labels).sum())
    parts = [rankdata(scores[:, at : at + _AT_ONCE], axis=0)[labels].sum(axis=0) for at in range(0, RANDOMS, _AT_ONCE)]
    ranks = np.concatenate(parts)
    return np.asarray((ranks - positives * (positives + 1) / 2) / (positives * negatives), dtype=np.float64)
