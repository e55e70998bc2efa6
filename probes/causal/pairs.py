"""Which prompts are patched from each other, and which position of one belongs to which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.types import BoolArray


@dataclass(frozen=True, slots=True)
class Pair:
    """Indices of two prompts that differ in their label."""

    positive: int
    negative: int


def paired(names: Sequence[str], labels: BoolArray, lengths: Sequence[int]) -> tuple[tuple[Pair, ...], str]:
    """Minimal pairs if the data has any; else the longest positive with the longest negative, and so on down.

    names: each prompt's `LabelledText.pair`. Returns also how they were paired, in words.
    """
    minimal = _minimal(names, labels)
    if minimal:
        return minimal, f"{len(minimal)} minimal pairs"
    ordered = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    positives = [index for index in ordered if labels[index]]
    negatives = [index for index in ordered if not labels[index]]
    by_length = tuple(Pair(*both) for both in zip(positives, negatives, strict=False))
    return by_length, f"{len(by_length)} pairs of texts of similar length"


def _minimal(names: Sequence[str], labels: BoolArray) -> tuple[Pair, ...]:
    sides: dict[str, dict[bool, int]] = {}
    for index, name in enumerate(names):
        if name:
            sides.setdefault(name, {}).setdefault(bool(labels[index]), index)
    return tuple(Pair(both[True], both[False]) for both in sides.values() if len(both) == 2)  # one of each label


def aligned(receiver: Sequence[int], donor: Sequence[int]) -> list[int]:
    """For each position of the receiver, a position of the donor; both are token ids.

    What both begin with and what both end with is matched token by token; what lies between is stretched or pressed together
    to fit. Prompts of one length and one frame are matched position by position.

    >>> aligned([1, 7, 7, 7, 7, 2], [1, 8, 9, 2])
    [0, 1, 1, 2, 2, 3]
    """
    shortest = min(len(receiver), len(donor))
    head = _alike(receiver, donor, shortest)
    tail = _alike(receiver[::-1], donor[::-1], shortest - head)
    ours, theirs = len(receiver) - head - tail, len(donor) - head - tail
    between = [min(head + place * theirs // ours, len(donor) - 1) for place in range(ours)]
    return [*range(head), *between, *range(len(donor) - tail, len(donor))]


def _alike(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    """How many of the first tokens, at most ``limit``, are the same."""
    for place in range(limit):
        if one[place] != other[place]:
            return place
    return limit
