"""Canaries compared: how far the answers to fixed prompts have moved, in units of the noise of the numerics in use.

A reference holds, for every token that is compared, the mean over several rounds of what was read there. The floor of a group of
numbers (a circuit's activities, a tap point's fingerprint) is the root mean square distance of single rounds from that mean, and at
least what the rounding of the states' own type makes of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.types import FloatArray

Token = tuple[str, int]  # a prompt's name, and the position from its end
Values = Mapping[Token, FloatArray]  # of one round: what was read at each token, in the columns of the groups
LIMIT = 5.0  # floors, above which a group has moved
AGREE = 2  # rounds in a row that must say so
MOST_MISSING = 0.1  # of the reference's tokens, in a round that is whole
# Half a unit in the last place of a state, through the layers of a model: they add up, one rounding for each block and more.
EPSILON = {"float32": 2.0**-20, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that are judged together. relative: they scale with the states, as activities do not."""

    name: str
    columns: slice
    relative: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """means: float64 [M, columns]; floors: by group."""

    tokens: tuple[Token, ...]
    means: npt.NDArray[np.float64]
    floors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Round:
    """How far each group has moved, in floors; NaN where too few tokens could be compared.

    compared: share of the reference's tokens that came. unread: groups that came with numbers that are none.
    """

    distances: Mapping[str, float]
    compared: float
    unread: frozenset[str] = frozenset()

    @property
    def enough(self) -> bool:
        """Whether its distances say anything."""
        return self.compared >= 1 - MOST_MISSING

    @property
    def whole(self) -> bool:
        return self.enough and not self.unread


def make_reference(rounds: Sequence[Values], groups: Sequence[Group], dtype: str) -> Reference:
    """Of at least two rounds on the sound model. Raises ValueError if they have no token in common that was read in full."""
    common = set(rounds[0]).intersection(*rounds[1:]) if len(rounds) > 1 else set()
    tokens = tuple(sorted(one for one in common if all(np.isfinite(values[one]).any() for values in rounds)))
    if not tokens:
        raise ValueError("a reference wants two rounds at least that have tokens in common")
    read = np.stack([[values[token] for token in tokens] for values in rounds]).astype(np.float64)  # [R, M, columns]
    means = read.mean(axis=0)
    return Reference(tokens, means, {one.name: _floor(read, means, one, dtype) for one in groups})


def compare(reference: Reference, values: Values, groups: Sequence[Group]) -> Round:
    """One round with the reference. What is not a number on either side is left out.

    A group of which that leaves too little is unread: not read and not finite look alike here, so that is neither moved nor quiet.
    """
    at = [number for number, token in enumerate(reference.tokens) if token in values]
    if not at:
        return Round({one.name: float("nan") for one in groups}, 0.0)
    read = np.stack([values[reference.tokens[number]] for number in at]).astype(np.float64)
    means = reference.means[at]
    apart = read - means
    shares = {one.name: _share(apart[:, one.columns], means[:, one.columns]) for one in groups}
    lost = {one.name for one in groups if shares[one.name] < 1 - MOST_MISSING}
    told = {one.name: _size(apart[:, one.columns]) / reference.floors[one.name] for one in groups}
    distances = {name: float("nan") if name in lost else distance for name, distance in told.items()}
    # A tap that projects sends circuits' readouts and no states: a tap point without any number is not there, and not broken.
    absent = {one.name for one in groups if one.relative and not shares[one.name]}
    return Round(distances, len(at) / len(reference.tokens), frozenset(lost - absent))


def moved(rounds: Sequence[Round], limit: float = LIMIT) -> frozenset[str]:
    """The groups that every one of the newest rounds says have moved; a round in which too many tokens are missing says nothing."""
    newest = [one for one in rounds if one.enough][-AGREE:]
    if len(newest) < AGREE:
        return frozenset()
    names = set(newest[0].distances).intersection(*(one.distances for one in newest))
    return frozenset(name for name in names if all(one.distances[name] > limit for one in newest))


def _floor(read: npt.NDArray[np.float64], means: npt.NDArray[np.float64], group: Group, dtype: str) -> float:
    rounds = len(read)
    apart = (read - means)[..., group.columns]
    measured = _size(apart.reshape(-1, apart.shape[-1])) * np.sqrt(rounds / (rounds - 1))
    scale = _size(means[:, group.columns]) if group.relative else max(1.0, _size(means[:, group.columns]))
    least = EPSILON.get(dtype, EPSILON["bfloat16"]) * scale
    return float(max(np.nan_to_num(measured), np.nan_to_num(least), np.finfo(np.float64).tiny))


def _share(apart: npt.NDArray[np.float64], means: npt.NDArray[np.float64]) -> float:
    """Of the tokens that the reference has as numbers, those that could be compared; 1 if it has none: nothing is missing then."""
    wanted = int(np.isfinite(means).all(axis=1).sum())
    return float(np.isfinite(apart).all(axis=1).sum()) / wanted if wanted else 1.0


def _size(rows: npt.NDArray[np.float64]) -> float:
    """Root mean square length of the rows that are numbers; NaN without any."""
    sound = rows[np.isfinite(rows).all(axis=1)]
    return float(np.sqrt(np.square(sound).sum(axis=1).mean())) if len(sound) else float("nan")
