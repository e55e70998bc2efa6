"""Texts that are alike belong together: none of them may test what another one taught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from probes.data.texts import folded, normalised

# Texts that share so many words in a row are alike. With 4, stock phrases chain a hundred texts together; with 5 the largest
# group of 4,772 film reviews has 7 members, of 1,090 text messages 20.
SHINGLE_WORDS = 5
# For messages: why there may be fewer independent texts than texts.
TOGETHER = f"texts that share {SHINGLE_WORDS} words in a row, a group or a pair count as one"
# What more than half of a data set's texts share is the form that they were put in and not what they say.
_FORM_SHARE = 0.5
_FORM_TEXTS = 8


def alike_groups(
    texts: Sequence[str], together: Sequence[Iterable[str]], sets: Sequence[str] | None = None
) -> list[int]:
    """For each text the number (index) of the first text of its group, its own if it is alone; groups are disjoint.

    Two texts are in one group if they are equal but for digits, if they share `SHINGLE_WORDS` words in a row, or if they share a
    word of ``together`` (ids of each text, such as an author's), directly or through others. What most texts of one of the
    ``sets`` (the data set of each text) share says nothing of them, as a question that all are put in does not.

    >>> alike_groups(["a b c d e f", "x b c d e f y", "z"], [(), (), ()])
    [0, 0, 2]
    """
    marks = [_marks(text) for text in texts]
    form = _form(marks, sets if sets is not None else [""] * len(texts))
    return joined([[*(own - form), *((one,) for one in ids)] for own, ids in zip(marks, together, strict=True)])


def joined(marks: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each item the first item that it is tied to by a mark of both, directly or through others (union-find).

    >>> joined(["ab", "c", "bd", "d"])
    [0, 1, 0, 0]
    """
    parent = list(range(len(marks)))
    first: dict[Hashable, int] = {}
    for index, own in enumerate(marks):
        for mark in own:
            _join(parent, first.setdefault(mark, index), index)
    return [_top(parent, index) for index in range(len(marks))]


def _marks(text: str) -> set[int]:
    """The hash of the whole text and of each run of words."""
    words = folded(normalised(text)).split()
    runs = {hash(tuple(words[at : at + SHINGLE_WORDS])) for at in range(len(words) - SHINGLE_WORDS + 1)}
    return runs | {hash((len(words), *words))}


def _form(marks: Sequence[set[int]], sets: Sequence[str]) -> set[int]:
    sizes = Counter(sets)
    counts = Counter((name, mark) for own, name in zip(marks, sets, strict=True) for mark in own)
    return {
        mark
        for (name, mark), count in counts.items()
        if sizes[name] >= _FORM_TEXTS and count > _FORM_SHARE * sizes[name]
    }


def _join(parent: list[int], one: int, other: int) -> None:
    """The earlier text stays the head."""
    low, high = sorted((_top(parent, one), _top(parent, other)))
    parent[high] = low


def _top(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
