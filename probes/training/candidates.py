"""What is tried: tap points x kinds x aggregations x strengths, each cross-validated on training rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.errors import LabError
from probes.journal import Journal
from probes.kinds.registry import KINDS
from probes.kinds.rows import Subset, Texts
from probes.manifest import Aggregation
from probes.stages import Candidate, Places, named
from probes.training.fitting import Fitting, Way
from probes.training.folds import folds
from sidecar.types import BoolArray, IndexArray

Array = npt.NDArray[np.float64]
Advance = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts with their labels and what they belong to, one entry a text; ``at``: their states at some tap points."""

    labels: BoolArray
    groups: tuple[str, ...]
    at: Callable[[Places], Texts]


def ways(
    kinds: Sequence[str], aggregations: Sequence[Aggregation] | None, strengths: Sequence[float] | None
) -> tuple[Way, ...]:
    """Every combination that the kinds can have; None: what each kind tries on its own account.

    Raises LabError for an unknown kind, and for a kind that can have none of the aggregations.
    """
    return tuple(way for kind in kinds for way in _ways(kind, aggregations, strengths))


def _ways(kind: str, aggregations: Sequence[Aggregation] | None, strengths: Sequence[float] | None) -> Iterator[Way]:
    if kind not in KINDS:
        raise LabError(f"there is no kind {kind!r}; there are: {', '.join(KINDS)}")
    estimator = KINDS[kind]
    fitting = [
        one
        for one in (estimator.aggregations if aggregations is None else aggregations)
        if one.kind in estimator.accepts
    ]
    if not fitting:
        known = ", ".join(sorted(kind.value for kind in estimator.accepts))
        raise LabError(f"{kind} can be scored by none of the aggregations that were named, but by: {known}")
    for aggregation in fitting:
        for strength in estimator.strengths if strengths is None else strengths:
            yield Way(kind, aggregation, strength)


class Survey:
    """Cross-validation of everything on the same folds, each fit done once: what ``kept`` has is not fitted again.

    advance: told of each candidate that is done.
    """

    def __init__(self, rows: Rows, fitting: Fitting, kept: Journal | None, *, seed: int, advance: Advance) -> None:
        self._rows = rows
        self._fitting = fitting
        self._kept = kept
        self._seed = seed
        self._advance = advance
        self._folds = folds(rows.labels, rows.groups, seed=seed)

    def __call__(self, places: Sequence[Places], tried: Sequence[Way]) -> tuple[Candidate, ...]:
        """Every way at every place."""
        return tuple(candidate for everywhere in places for candidate in self._at(everywhere, tried))

    def _at(self, everywhere: Places, tried: Sequence[Way]) -> Iterator[Candidate]:
        read = cache(lambda: self._fitting.ready(self._rows.at(everywhere)))  # not before a fit needs them
        for way in tried:
            fits = {
                _key(everywhere, way, number): partial(self._held_out, way, read, *fold)
                for number, fold in enumerate(self._folds)
            }
            yield _summed_up(everywhere, way, np.array([self._once(key, fit) for key, fit in fits.items()]))
            self._advance(f"{named(everywhere)} {way.kind}")

    def _once(self, key: str, fit: Callable[[], float]) -> float:
        if self._kept is None:
            return fit()
        if key not in self._kept:
            self._kept.add(key, fit())
        return float(self._kept[key])

    def _held_out(self, way: Way, read: Callable[[], Texts], train: IndexArray, held_out: IndexArray) -> float:
        """AUROC on one fold of a fit on the others."""
        texts, labels, groups = read(), self._rows.labels, self._rows.groups
        own = [groups[row] for row in train]
        fitted = self._fitting.fit(way, Subset(texts, train), labels[train], own, self._seed)
        return auroc(self._fitting.scores(fitted, Subset(texts, held_out)), labels[held_out])


def _key(everywhere: Places, way: Way, fold: int) -> str:
    return f"{named(everywhere)} {way.kind} {way.aggregation.model_dump_json()} {way.strength!r} {fold}"


def _summed_up(everywhere: Places, way: Way, aurocs: Array) -> Candidate:
    """Mean and standard error over folds. Folds share training rows, so the error is on the small side: a rule's, not a claim's."""
    first, *others = (where.name for where in everywhere)
    return Candidate(
        tap_point=first,
        also=tuple(others),
        kind=way.kind,
        aggregation=way.aggregation,
        strength=way.strength,
        auroc=float(aurocs.mean()),
        error=float(aurocs.std(ddof=1) / len(aurocs) ** 0.5),
    )
