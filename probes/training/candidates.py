"""What is tried: tap points x kinds x aggregations x strengths, each cross-validated on training rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.auroc import auroc
from probes.errors import LabError
from probes.kinds.base import ProbeEstimator
from probes.kinds.descent import MEMORY_BYTES
from probes.kinds.registry import KINDS, make_estimator
from probes.kinds.rows import Subset, Texts, held
from probes.manifest import Aggregation
from probes.stages import Candidate
from probes.training.folds import folds
from sidecar.types import BoolArray, TapPoint

Array = npt.NDArray[np.float64]
Advance = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train at any tap point."""

    kind: str
    aggregation: Aggregation
    strength: float

    def make(self, seed: int) -> ProbeEstimator:
        return make_estimator(self.kind, self.aggregation, self.strength, seed)


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts with their labels and what they belong to, one entry a text; ``at``: their states at a tap point."""

    labels: BoolArray
    groups: tuple[str, ...]
    at: Callable[[TapPoint], Texts]


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


def survey(
    rows: Rows, tap_points: Sequence[TapPoint], tried: Sequence[Way], *, seed: int, advance: Advance
) -> tuple[Candidate, ...]:
    """Cross-validate everything on everything, the same folds for all. advance: told of each candidate that is done."""
    parts = folds(rows.labels, rows.groups, seed=seed)
    found = []
    for where in tap_points:
        texts = held(rows.at(where), MEMORY_BYTES)
        for way in tried:
            aurocs = cross_validate(way, texts, rows, parts, seed=seed)
            found.append(summed_up(where.name, way.kind, way.aggregation, way.strength, aurocs))
            advance(f"{where.name} {way.kind}")
    return tuple(found)


def cross_validate(
    way: Way, texts: Texts, rows: Rows, parts: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]], *, seed: int
) -> Array:
    """Held-out AUROC of each fold."""
    found = []
    for train, held_out in parts:
        estimator = way.make(seed)
        estimator.fit(Subset(texts, train), rows.labels[train], [rows.groups[row] for row in train])
        found.append(auroc(estimator.decision_function(Subset(texts, held_out)), rows.labels[held_out]))
    return np.array(found)


def summed_up(tap_point: str, kind: str, aggregation: Aggregation, strength: float, aurocs: Array) -> Candidate:
    """Mean and standard error over folds. Folds share training rows, so the error is on the small side: a rule's, not a claim's."""
    return Candidate(
        tap_point=tap_point,
        kind=kind,
        aggregation=aggregation,
        strength=strength,
        auroc=float(aurocs.mean()),
        error=float(aurocs.std(ddof=1) / len(aurocs) ** 0.5),
    )
