"""Sketches of replicas into one over all: integers, so any order gives the same bits. What must not be added is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.circuits.tick import TickKey, TickRow


class SketchError(Exception):
    """Sketches that are not added: the text says which, for people."""


class OtherHashError(SketchError):
    """A circuit comes from two models or two specs: their activities are not the same quantity."""


class OverlapError(SketchError):
    """Two sketches share some of their sources, or differ where they are of the same: a sum would count rows twice."""


@dataclass(frozen=True, slots=True)
class Merged:
    """rows: one per circuit, slice and tick, in order. repeated: rows that came again, and count once."""

    rows: tuple[TickRow, ...]
    repeated: int


def merge(rows: Iterable[TickRow]) -> Merged:
    """Add what belongs together. Any order, any grouping (merges may be merged) gives the same, bit for bit.

    A row that came again, by itself or inside another merge, counts once. Raises OtherHashError, OverlapError.
    """
    found: dict[TickKey, list[TickRow]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    _check_hashes(found)
    made, repeated = [], 0
    for key in sorted(found):
        distinct = _distinct(found[key])
        repeated += len(found[key]) - len(distinct)
        made.append(_sum(key, distinct))
    return Merged(tuple(made), repeated)


def _check_hashes(found: dict[TickKey, list[TickRow]]) -> None:
    known: dict[str, tuple[object, ...]] = {}
    for key, rows in found.items():
        for row in rows:
            mine = (key.model_hash, key.spec_hash, key.tick_s, row.shape)
            theirs = known.setdefault(key.circuit, mine)
            for what, one, other in zip(("model", "spec", "length of a tick", "shape"), mine, theirs, strict=True):
                if one != other:
                    raise OtherHashError(f"{key.circuit} comes with two of its {what}: {other} and {one}")


def _distinct(rows: list[TickRow]) -> list[TickRow]:
    """Without those whose sources are all in another row."""
    kept: list[TickRow] = []
    taken: set[str] = set()
    for row in sorted(rows, key=lambda one: (-len(one.sources), one.sources)):
        sources = set(row.sources)
        if not sources & taken:
            kept.append(row)
            taken |= sources
        elif not any(_within(row, other) for other in kept):
            raise OverlapError(
                f"{row.key.circuit}, tick {row.key.tick}: sources are in two sums, or differ from themselves"
            )
    return kept


def _within(row: TickRow, other: TickRow) -> bool:
    if row.sources == other.sources:
        return row == other
    return set(row.sources) < set(other.sources)


def _sum(key: TickKey, rows: list[TickRow]) -> TickRow:
    sources = tuple(sorted(source for row in rows for source in row.sources))
    counts = rows[0].counts.copy()
    for row in rows[1:]:
        counts += row.counts
    return TickRow(key, sources, rows[0].shape, counts)
