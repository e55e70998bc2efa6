"""What was tried, for people: the best strength of each way, the best way first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probes.manifest import Aggregation, AggregationKind
from probes.stages import Candidate, Training

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20
_LONGEST = "blocks.99.resid_post"
_NOT_WINDOWED = frozenset(
    {AggregationKind.MEAN, AggregationKind.LAST, AggregationKind.ATTENTION, AggregationKind.MULTIMAX}
)


def candidates_table(training: Training) -> Table:
    """One line a tap point, kind and aggregation; the chosen one is marked. At most `SHOWN`; the title says of how many."""
    from rich.box import SIMPLE
    from rich.table import Table

    best = _best_strengths(training.candidates)
    table = Table(
        title=f"Cross-validated on training rows: {min(SHOWN, len(best))} best of {len(best)} ways",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("AUROC", "s.e."):  # never cut off where the terminal is narrow
        table.add_column(column, justify="right", min_width=len("> 0.999"), no_wrap=True)
    table.add_column("tap point", min_width=len(_LONGEST), no_wrap=True)
    for column in ("kind", "aggregation", "strength"):
        table.add_column(column, no_wrap=True)
    for place, one in enumerate(best):
        chosen = is_chosen(one, training)
        if place < SHOWN or chosen:
            numbers = (f"{'> ' if chosen else ''}{one.auroc:.3f}", f"{one.error:.3f}")
            way = (one.tap_point, one.kind, in_words(one.aggregation), f"{one.strength:g}")
            table.add_row(*numbers, *way)
    return table


def is_chosen(candidate: Candidate, training: Training) -> bool:
    return all(
        getattr(candidate, name) == getattr(training, name) for name in ("tap_point", "kind", "aggregation", "strength")
    )


def in_words(aggregation: Aggregation) -> str:
    """Name the aggregation with those of its numbers that mean something.

    >>> in_words(Aggregation(kind=AggregationKind.COHERENCE, window=10, agree=3))
    'coherence, 3 of 10'
    """
    kind = aggregation.kind
    if kind is AggregationKind.COHERENCE:
        return f"{kind.value}, {aggregation.agree} of {aggregation.window}"
    if kind is AggregationKind.MULTIMAX:
        return f"{kind.value}, {aggregation.heads} heads"
    return kind.value if kind in _NOT_WINDOWED else f"{kind.value}, {aggregation.window}"


def _best_strengths(candidates: Sequence[Candidate]) -> list[Candidate]:
    best: dict[tuple[str, str, Aggregation], Candidate] = {}
    for one in candidates:
        way = (one.tap_point, one.kind, one.aggregation)
        if way not in best or one.auroc > best[way].auroc:
            best[way] = one
    return sorted(best.values(), key=lambda one: -one.auroc)
