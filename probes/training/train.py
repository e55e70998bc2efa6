"""Train a probe from an activation store: layer, kind and aggregation chosen on training rows, the last word on others."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes.auroc import auroc
from probes.data.parts import assign_parts
from probes.errors import LabError
from probes.journal import Journal
from probes.kinds.base import ProbeEstimator
from probes.kinds.beside import states_at
from probes.kinds.threads import one_thread
from probes.serving import Served
from probes.stages import Candidate, Part, Places, Training
from probes.training.candidates import Advance, Rows, Survey
from probes.training.choice import finalists, shortlist
from probes.training.fitting import HERE, Fitting, Way
from probes.training.folds import units
from probes.training.search import Search

if TYPE_CHECKING:
    from probes.activations.store import ActivationStore


def train(
    store: ActivationStore,
    search: Search,
    *,
    fitting: Fitting = HERE,
    kept: Journal | None = None,
    advance: Advance = lambda _: None,
) -> tuple[Training, Served]:
    """Choose on TRAIN by cross-validation, between finalists on SELECT, and fit on TRAIN; no other row is read.

    kept: where what is cross-validated is kept, and taken from if it is there already (see `fingerprint`). advance: told of each
    candidate that is done; there are `Search.count`. Deterministic: the same store and search give the same weights, also when a
    run that was ended is gone on with. Raises LabError if a part lacks a class, or the store a tap point.
    """
    began = time.monotonic()
    search.must_fit(store.facts)
    parts = assign_parts(store.texts, search.seed, outside=frozenset(store.facts.outside))
    with one_thread():
        learn, select = (_rows(store, parts, part) for part in (Part.TRAIN, Part.SELECT))
        survey = Survey(learn, fitting, kept, seed=search.seed, advance=advance)
        tried, considered = _tried(store, search, survey)
        chosen, fitted, score = _last_word(finalists(considered), learn, select, fitting, search.seed)
    training = Training(
        name=search.name,
        description=search.description,
        positive_label=store.facts.positive_label,
        negative_label=store.facts.negative_label,
        store=str(store.folder.resolve()),
        store_digest=store.digest,
        kind=chosen.kind,
        tap_point=chosen.tap_point,
        also=chosen.also,
        aggregation=chosen.aggregation,
        strength=chosen.strength,
        seed=search.seed,
        parts=parts,
        select_auroc=score,
        candidates=tried,
        seconds=time.monotonic() - began,
    )
    return training, fitted.served_


def refit(training: Training, store: ActivationStore, *, everywhere: Places = ()) -> ProbeEstimator:
    """Fit on the TRAIN rows again as the training was done, at its tap points or at others."""
    way = Way(training.kind, training.aggregation, training.strength)
    rows = _rows(store, training.parts, Part.TRAIN)
    return _fit(way, rows, everywhere or training.everywhere, HERE, training.seed)


def fingerprint(store: ActivationStore, search: Search, fitting: Fitting = HERE) -> str:
    """Hex SHA-256 of all that a cross-validated fit depends on, but for what its own key says: tap points, way and fold."""
    import scipy
    import sklearn

    from sidecar.version import VERSION

    versions = [VERSION, np.__version__, scipy.__version__, sklearn.__version__]
    return hashlib.sha256(json.dumps([store.digest, search.seed, fitting.name, versions]).encode()).hexdigest()


def _tried(
    store: ActivationStore, search: Search, survey: Survey
) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    """All that was cross-validated, and what of it the choice is between."""
    points, (first, second) = search.points(store.facts), search.stages
    tried = survey([(where,) for where in points], first)
    if second:
        tried += survey([(where,) for where in shortlist(tried)], second)
    if search.concatenate is None:
        return tried, tried
    together = survey([search.concatenate or tuple(sorted(shortlist(tried)))], search.ways_together)
    return tried + together, together if search.concatenate else tried + together


def _rows(store: ActivationStore, parts: Sequence[Part], part: Part) -> Rows:
    rows = [row for row, of in enumerate(parts) if of is part]
    texts = [store.texts[row] for row in rows]
    labels = np.array([text.label for text in texts], dtype=np.bool_)
    if len(set(labels.tolist())) < 2:
        raise LabError(f"the {part.value} part has {len(rows)} texts and not both classes: more texts are needed")
    return Rows(labels, units(texts), lambda everywhere: states_at(store, everywhere, rows))


def _last_word(
    chosen: Sequence[Candidate], learn: Rows, select: Rows, fitting: Fitting, seed: int
) -> tuple[Candidate, ProbeEstimator, float]:
    """Fit each finalist on TRAIN; the highest AUROC on SELECT wins, between equals the one that cross-validation had first."""
    found = []
    for candidate in chosen:
        way = Way(candidate.kind, candidate.aggregation, candidate.strength)
        fitted = _fit(way, learn, candidate.everywhere, fitting, seed)
        scores = fitting.scores(fitted, select.at(candidate.everywhere))
        found.append((candidate, fitted, auroc(scores, select.labels)))
    return max(found, key=lambda one: one[2])


def _fit(way: Way, rows: Rows, everywhere: Places, fitting: Fitting, seed: int) -> ProbeEstimator:
    return fitting.fit(way, rows.at(everywhere), rows.labels, rows.groups, seed)
