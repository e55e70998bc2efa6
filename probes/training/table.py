"""What was tried, for people: the best strength of each way, the best way first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from probes.manifest import Aggregation, AggregationKind
from probes.stages import Candidate, Places, Training, named
from probes.training.choice import best_of

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
    for column, longest in (("AUROC", "> 0.999"), ("s.e.", "0.999")):  # never cut off where the terminal is narrow
        table.add_column(column, justify="right", min_width=len(longest), no_wrap=True)
    table.add_column("tap point", min_width=len(_LONGEST), max_width=len(f"{_LONGEST} +"))  # several: one a line
    table.add_column("way", overflow="fold")
    table.add_column("strength", no_wrap=True)
    for place, one in enumerate(best):
        chosen = is_chosen(one, training)
        if place < SHOWN or chosen:
            numbers = (f"{'> ' if chosen else ''}{one.auroc:.3f}", f"{one.error:.3f}")
            table.add_row(*numbers, named(one.everywhere), _way(one), f"{one.strength:g}")
    return table


def _way(one: Candidate) -> str:
    """Kind and aggregation; some kinds are named for the one that they have."""
    aggregation = in_words(one.aggregation)
    return aggregation if one.aggregation.kind.value == one.kind else f"{one.kind}, {aggregation}"


def in_one_line(training: Training) -> str:
    """What was chosen, and how well it did where the choice was made."""
    return (
        f"{training.name}: {training.kind} at {named(training.everywhere)}, scored by {in_words(training.aggregation)}, strength "
        f"{training.strength:g}; AUROC {training.select_auroc:.3f} on the rows that chose between finalists "
        f"({training.seconds:.0f} s)."
    )


def worth(training: Training) -> Iterator[str]:
    """What reading several tap points together brought, and what it costs; nothing if it was not tried."""
    together = [one for one in training.candidates if one.also]
    alone = [one for one in training.candidates if not one.also]
    if not together or not alone:
        return
    best, single = best_of(together), best_of(alone)
    gain = best.auroc - single.auroc
    worthy = gain > best.error
    taken = "taken" if worthy else "taken because it was asked for"
    yield (
        f"{named(best.everywhere)} together: AUROC {best.auroc:.3f}, {gain:+.3f} against {single.tap_point} alone, "
        f"{'more' if worthy else 'not more'} than a standard error ({best.error:.3f}): "
        f"{taken if training.also else 'not taken'}."
    )
    if training.also:
        yield (
            f"It reads {1 + len(training.also)} tap points: at each step the engine hands over the states of each, and each "
            "needs a positive control."
        )


def is_chosen(candidate: Candidate, training: Training) -> bool:
    return all(
        getattr(candidate, name) == getattr(training, name)
        for name in ("tap_point", "also", "kind", "aggregation", "strength")
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
    best: dict[tuple[Places, str, Aggregation], Candidate] = {}
    for one in candidates:
        way = (one.everywhere, one.kind, one.aggregation)
        if way not in best or one.auroc > best[way].auroc:
            best[way] = one
    return sorted(best.values(), key=lambda one: -one.auroc)
