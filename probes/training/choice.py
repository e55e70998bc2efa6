"""From candidates to finalists: the simplest place that is as good as the best, within what chance would give."""

from __future__ import annotations

from collections.abc import Sequence

from probes.stages import Candidate, Places
from sidecar.types import TapPoint

FINALISTS = 4
SHORTLIST = 2


def finalists(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Of the candidates within one standard error of the best: those at the simplest place, the best of each kind.

    The best first, at most `FINALISTS`. One tap point is simpler than several, each of which costs the engine time at every step;
    an earlier one costs the model less to reach and the reader less to understand. What is within a standard error of the best
    may as well be the best (Breiman et al., 1984, the 1-SE rule): several tap points must be better by more than that.
    """
    enough = _as_good_as_the_best(candidates)
    simplest = _simplest(enough)
    of_kind: dict[str, Candidate] = {}
    for one in enough:
        if one.everywhere == simplest and (one.kind not in of_kind or one.auroc > of_kind[one.kind].auroc):
            of_kind[one.kind] = one
    return tuple(sorted(of_kind.values(), key=lambda one: -one.auroc)[:FINALISTS])


def shortlist(candidates: Sequence[Candidate]) -> tuple[TapPoint, ...]:
    """Return the tap points worth a closer look, `SHORTLIST` at most: the earliest one within the rule, then those of the best.

    candidates: each of one tap point.
    """
    (earliest,) = _simplest(_as_good_as_the_best(candidates))
    best_first = (where for one in sorted(candidates, key=lambda one: -one.auroc) for where in one.everywhere)
    return tuple(dict.fromkeys([earliest, *best_first]))[:SHORTLIST]


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The highest AUROC; between equals the first."""
    return max(candidates, key=lambda one: one.auroc)


def _as_good_as_the_best(candidates: Sequence[Candidate]) -> list[Candidate]:
    best = best_of(candidates)
    return [one for one in candidates if one.auroc >= best.auroc - best.error]


def _simplest(candidates: Sequence[Candidate]) -> Places:
    return min((one.everywhere for one in candidates), key=lambda places: (len(places), places))
