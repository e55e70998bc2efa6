"""Which texts teach, which choose, which calibrate and which test: whole groups, so that nothing is tested on what it taught."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from probes.data.alike import TOGETHER, joined
from probes.data.texts import LabelledText
from probes.errors import LabError
from probes.stages import Part

_PARTS = (Part.TRAIN, Part.SELECT, Part.CALIBRATE, Part.TEST)
SHARES = (0.5, 0.1, 0.2, 0.2)


def assign_parts(
    texts: Sequence[LabelledText],
    seed: int,
    shares: Sequence[float] = SHARES,
    outside: AbstractSet[str] = frozenset(),
) -> tuple[Part, ...]:
    """The part of every text: train, select, calibrate and test at these shares, both labels alike in each.

    Texts of one group, or with one key, are in one part; all that the groups leave open is balanced. Texts of the ``outside``
    data sets are OUTSIDE, or DROPPED if they have a relative among the others. The same texts and seed give the same parts.
    Raises LabError if a part with a share would lack one of the labels.
    """
    if len(shares) != len(_PARTS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise LabError(f"four shares that add up to 1 are wanted (train, select, calibrate, test), not {tuple(shares)}")
    heads = _heads(texts)
    groups: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        if text.dataset not in outside:
            groups.setdefault(heads[index], []).append(index)
    part_of = _deal(texts, groups, seed, shares)
    _check(texts, groups, part_of, shares)
    return tuple(
        part_of.get(heads[index], Part.OUTSIDE)
        if text.dataset not in outside
        else (Part.DROPPED if heads[index] in groups else Part.OUTSIDE)
        for index, text in enumerate(texts)
    )


def _heads(texts: Sequence[LabelledText]) -> list[int]:
    """For each text the first one that it is tied to, by its group or its key, directly or through others."""
    return joined([[f"key {text.key}", *([f"group {text.group}"] if text.group else [])] for text in texts])


def _deal(
    texts: Sequence[LabelledText], groups: Mapping[int, list[int]], seed: int, shares: Sequence[float]
) -> dict[int, Part]:
    """Large groups first, then the others in an order drawn by the seed, each to the part that is emptiest for it."""
    total = _counts(texts, [index for members in groups.values() for index in members])
    wanted = {part: (share * total[0], share * total[1]) for part, share in zip(_PARTS, shares, strict=True) if share}
    have = {part: [0, 0] for part in wanted}
    dealt: dict[int, Part] = {}
    for head in sorted(groups, key=lambda head: (-len(groups[head]), _draw(texts[head].key, seed))):
        new = _counts(texts, groups[head])
        part = min(wanted, key=lambda part: _fullness(have[part], new, wanted[part]))
        dealt[head] = part
        have[part] = [have[part][label] + new[label] for label in (0, 1)]
    return dealt


def _fullness(have: Sequence[int], new: Sequence[int], wanted: Sequence[float]) -> float:
    """How full a part would be of the labels that a group brings."""
    return sum(new[label] * (have[label] + new[label]) / wanted[label] for label in (0, 1) if new[label])


def _counts(texts: Sequence[LabelledText], members: Sequence[int]) -> tuple[int, int]:
    positives = sum(texts[index].label for index in members)
    return len(members) - positives, positives


def _draw(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def _check(
    texts: Sequence[LabelledText],
    groups: Mapping[int, list[int]],
    part_of: Mapping[int, Part],
    shares: Sequence[float],
) -> None:
    found = {(part_of[head], texts[index].label) for head, members in groups.items() for index in members}
    for part, share in zip(_PARTS, shares, strict=True):
        for label in (False, True):
            if share and (part, label) not in found:
                count, largest = sum(map(len, groups.values())), max(map(len, groups.values()), default=0)
                raise LabError(
                    f"no {'positive' if label else 'negative'} text is left for the part {part.value!r}: there are {count} texts "
                    f"in {len(groups)} groups, the largest of {largest} ({TOGETHER}); more texts, or other groups, are needed"
                )
