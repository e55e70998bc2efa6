"""From candidates to finalists: the earliest layer that is as good as the best, within what chance would give."""

from __future__ import annotations

from collections.abc import Sequence

from probes.stages import Candidate
from sidecar.types import TapPoint

FINALISTS = 4
SHORTLIST = 2


def finalists(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Of the candidates within one standard error of the best: those at the earliest tap point, the best of each kind.

    The best first, at most `FINALISTS`. An earlier layer costs the model less to reach and the reader less to understand, and
    what is within a standard error of the best may as well be the best (Breiman et al., 1984, the 1-SE rule).
    """
    enough = _as_good_as_the_best(candidates)
    earliest = _earliest(enough)
    of_kind: dict[str, Candidate] = {}
    for one in enough:
        if TapPoint.parse(one.tap_point) == earliest and (
            one.kind not in of_kind or one.auroc > of_kind[one.kind].auroc
        ):
            of_kind[one.kind] = one
    return tuple(sorted(of_kind.values(), key=lambda one: -one.auroc)[:FINALISTS])


def shortlist(candidates: Sequence[Candidate]) -> tuple[TapPoint, ...]:
    """Return the tap points worth a closer look, `SHORTLIST` at most: the earliest one within the rule, then those of the best."""
    earliest = _earliest(_as_good_as_the_best(candidates))
    best_first = (TapPoint.parse(one.tap_point) for one in sorted(candidates, key=lambda one: -one.auroc))
    return tuple(dict.fromkeys([earliest, *best_first]))[:SHORTLIST]


def _as_good_as_the_best(candidates: Sequence[Candidate]) -> list[Candidate]:
    best = max(candidates, key=lambda one: one.auroc)
    return [one for one in candidates if one.auroc >= best.auroc - best.error]


def _earliest(candidates: Sequence[Candidate]) -> TapPoint:
    return min(TapPoint.parse(one.tap_point) for one in candidates)
