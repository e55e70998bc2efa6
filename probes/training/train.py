"""Train a probe from an activation store: layer, kind and aggregation chosen on training rows, the last word on others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.auroc import auroc
from probes.data.parts import assign_parts
from probes.errors import LabError
from probes.kinds.base import ProbeEstimator
from probes.kinds.registry import KINDS
from probes.kinds.threads import one_thread
from probes.manifest import Aggregation
from probes.serving import Served
from probes.stages import Candidate, Part, Training
from probes.training.candidates import Advance, Rows, Way, survey, ways
from probes.training.choice import SHORTLIST, finalists, shortlist
from probes.training.concatenated import concatenated, strengths_together
from probes.training.folds import units
from sidecar.types import TapPoint

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore

DEFAULT_KINDS = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Search:
    """What to try, and under which name. None: all tap points of the store; each kind's own aggregations and strengths.

    everywhere: try every kind at every tap point. Otherwise kinds that are not quick are tried where quick ones, if any are to be
    tried, did best (`shortlist`): a concept that no pooled state shows at any layer is found by them, but maybe not at its layer.
    concatenate: also cross-validate one probe over all tap points together, to be told, not chosen (`Concatenation`).
    """

    name: str
    description: str = ""
    kinds: tuple[str, ...] = DEFAULT_KINDS
    tap_points: tuple[TapPoint, ...] | None = None
    aggregations: tuple[Aggregation, ...] | None = None
    strengths: tuple[float, ...] | None = None
    everywhere: bool = False
    concatenate: bool = False
    seed: int = 0

    @property
    def ways(self) -> tuple[Way, ...]:
        """Everything that is tried at a tap point. Raises LabError for an unknown kind."""
        return ways(self.kinds, self.aggregations, self.strengths)

    @property
    def stages(self) -> tuple[tuple[Way, ...], tuple[Way, ...]]:
        """What is tried at every tap point, and what only at those where that did best."""
        everywhere = tuple(way for way in self.ways if self.everywhere or KINDS[way.kind].quick)
        if not everywhere:
            return self.ways, ()
        return everywhere, tuple(way for way in self.ways if way not in everywhere)


def train(store: ActivationStore, search: Search, *, advance: Advance = lambda _: None) -> tuple[Training, Served]:
    """Choose on TRAIN by cross-validation, between finalists on SELECT, and fit on TRAIN; no other row is read.

    advance: told of each candidate that is done; there are `count_candidates`. Deterministic: the same store and search give the
    same weights. Raises LabError if a part lacks a class, or the store a tap point.
    """
    began = time.monotonic()
    parts = assign_parts(store.texts, search.seed, outside=frozenset(store.facts.outside))
    with one_thread():
        learn, select = (_rows(store, parts, part) for part in (Part.TRAIN, Part.SELECT))
        points = tap_points(store, search)
        first, second = search.stages
        tried = survey(learn, points, first, seed=search.seed, advance=advance)
        if second:
            tried += survey(learn, shortlist(tried), second, seed=search.seed, advance=advance)
        chosen, fitted, score = _last_word(finalists(tried), learn, select, search.seed)
        if search.concatenate:
            tried += concatenated(learn, points, search.strengths, seed=search.seed, advance=advance)
    training = Training(
        name=search.name,
        description=search.description,
        positive_label=store.facts.positive_label,
        negative_label=store.facts.negative_label,
        store=str(store.folder.resolve()),
        store_digest=store.digest,
        kind=chosen.kind,
        tap_point=chosen.tap_point,
        aggregation=chosen.aggregation,
        strength=chosen.strength,
        seed=search.seed,
        parts=parts,
        select_auroc=score,
        candidates=tried,
        seconds=time.monotonic() - began,
    )
    return training, fitted.served_


def refit(training: Training, store: ActivationStore, *, tap_point: str | None = None) -> ProbeEstimator:
    """Fit on the TRAIN rows again as the training was done, at its tap point or at another."""
    where = TapPoint.parse(training.tap_point if tap_point is None else tap_point)
    way = Way(training.kind, training.aggregation, training.strength)
    return _fit(way, _rows(store, training.parts, Part.TRAIN), where, training.seed)


def tap_points(store: ActivationStore, search: Search) -> tuple[TapPoint, ...]:
    """Where to look. Raises LabError for a tap point that the store has not."""
    there = tuple(sorted(TapPoint.parse(name) for name in store.facts.tap_points))
    missing = [where.name for where in search.tap_points or () if where not in there]
    if missing:
        has = ", ".join(where.name for where in there)
        raise LabError(f"{store.folder} has no states of {', '.join(missing)}; it has: {has}")
    return there if search.tap_points is None else tuple(sorted(set(search.tap_points)))


def count_candidates(store: ActivationStore, search: Search) -> int:
    """How many will be cross-validated, for a progress bar."""
    points, (first, second) = len(tap_points(store, search)), search.stages
    together = len(strengths_together(search.strengths)) if search.concatenate else 0
    return points * len(first) + min(points, SHORTLIST) * len(second) + together


def _rows(store: ActivationStore, parts: Sequence[Part], part: Part) -> Rows:
    rows = [row for row, of in enumerate(parts) if of is part]
    texts = [store.texts[row] for row in rows]
    labels = np.array([text.label for text in texts], dtype=np.bool_)
    if len(set(labels.tolist())) < 2:
        raise LabError(f"the {part.value} part has {len(rows)} texts and not both classes: more texts are needed")
    return Rows(labels, units(texts), lambda where: store.at(where, rows))


def _last_word(
    chosen: Sequence[Candidate], learn: Rows, select: Rows, seed: int
) -> tuple[Candidate, ProbeEstimator, float]:
    """Fit each finalist on TRAIN; the highest AUROC on SELECT wins, between equals the one that cross-validation had first."""
    found = []
    for candidate in chosen:
        where = TapPoint.parse(candidate.tap_point)
        fitted = _fit(Way(candidate.kind, candidate.aggregation, candidate.strength), learn, where, seed)
        found.append((candidate, fitted, auroc(fitted.decision_function(select.at(where)), select.labels)))
    return max(found, key=lambda one: one[2])


def _fit(way: Way, rows: Rows, where: TapPoint, seed: int) -> ProbeEstimator:
    estimator = way.make(seed)
    estimator.fit(rows.at(where), rows.labels, rows.groups)
    return estimator
