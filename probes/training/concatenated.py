"""What several tap points together would bring: shown beside the candidates, never chosen, as a draft has one tap point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.auroc import auroc
from probes.kinds.concatenation import Beside, Concatenation
from probes.kinds.rows import Subset
from probes.stages import Candidate
from probes.training.candidates import Advance, Rows, summed_up
from probes.training.folds import folds
from sidecar.types import TapPoint

KIND = "concatenation"


def concatenated(
    rows: Rows, tap_points: Sequence[TapPoint], strengths: Sequence[float] | None, *, seed: int, advance: Advance
) -> tuple[Candidate, ...]:
    """Cross-validate one probe over all of the tap points at once, mean-pooled, for each strength; the survey's own folds.

    Told under the deepest tap point.
    """
    texts = [rows.at(where) for where in tap_points]
    names = [where.name for where in tap_points]
    parts = folds(rows.labels, rows.groups, seed=seed)
    found = []
    for strength in strengths_together(strengths):
        aurocs = []
        for train, held_out in parts:
            estimator = Concatenation(names, strength=strength)
            own = [rows.groups[row] for row in train]
            estimator.fit(Beside([Subset(layer, train) for layer in texts]), rows.labels[train], own)
            scores = estimator.decision_function(Beside([Subset(layer, held_out) for layer in texts]))
            aurocs.append(auroc(scores, rows.labels[held_out]))
        found.append(summed_up(names[-1], KIND, Concatenation().aggregation, strength, np.array(aurocs)))
        advance(f"{len(names)} tap points {KIND}")
    return tuple(found)


def strengths_together(strengths: Sequence[float] | None) -> tuple[float, ...]:
    return Concatenation.strengths if strengths is None else tuple(strengths)
