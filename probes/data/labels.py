"""Labels of any common kind become booleans in one place, or an error that names the row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.errors import LabError
from sidecar.types import BoolArray

# (negative, positive): pairs of names whose order nobody doubts. Everything else must be told which one is positive.
_KNOWN = (
    ("0", "1"),
    ("-1", "1"),
    ("false", "true"),
    ("no", "yes"),
    ("f", "t"),
    ("n", "y"),
    ("negative", "positive"),
    ("neg", "pos"),
)
_MISSING = frozenset({"", "nan"})
Where = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Labels:
    """values: bool [n], True for the positive class; the names are those that the data uses."""

    values: BoolArray
    positive: str
    negative: str


def as_bool(labels: npt.ArrayLike | Sequence[Any], positive: str | None = None) -> BoolArray:
    """Labels that are bool, 0/1, -1/1 or strings as bool [n]; ``positive`` names the class that is True.

    Raises LabError if a label is missing (its place is named), if there are not two classes, or if nobody can know which of the
    two is positive.

    >>> as_bool([-1, 1, 1]).tolist(), as_bool(["ham", "spam"], positive="spam").tolist()
    ([False, True, True], [False, True])
    """
    return read_labels(_listed(labels), positive).values


def read_labels(labels: Sequence[Any], positive: str | None = None, where: Where | None = None) -> Labels:
    """The same with the classes' names. where: says in words where label i (from 0) stands, for errors."""
    place = where if where is not None else lambda index: f"label {index + 1}"
    names = [_name(label, index, place) for index, label in enumerate(labels)]
    found = sorted(set(names))
    if len(found) != 2:
        raise LabError(_not_two(found, names, place))
    negative, chosen = _ordered(found, positive)
    return Labels(np.array([name == chosen for name in names], dtype=np.bool_), chosen, negative)


def _listed(labels: Any) -> list[Any]:
    values = np.asarray(labels)
    if values.ndim != 1:
        raise LabError(f"labels must be one column, not of shape {values.shape}")
    return list(values.tolist())


def _name(label: Any, index: int, place: Where) -> str:
    """One spelling for 1, 1.0, True where numbers are meant, and "1"."""
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise LabError(f"{place(index)}: the label is missing")
    if isinstance(label, bool | np.bool_):
        return "true" if label else "false"
    if isinstance(label, int | float | np.number):
        return _number(float(label))
    if not isinstance(label, str):
        raise LabError(f"{place(index)}: a label is a bool, a number or a text, not {type(label).__name__}")
    text = label.strip()
    if text.casefold() in _MISSING:
        raise LabError(f"{place(index)}: the label is missing")
    try:
        return _number(float(text))
    except ValueError:
        return text


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _not_two(found: list[str], names: list[str], place: Where) -> str:
    if not found:
        return "there are no labels"
    if len(found) == 1:
        return f"every label is {found[0]!r}: a probe is trained on two classes"
    shown = ", ".join(repr(name) for name in found[:5]) + (", ..." if len(found) > 5 else "")
    third = min(names.index(name) for name in found if name not in _first_two(names))
    return f"{place(third)}: the third class of {len(found)} ({shown}); a probe tells two classes apart"


def _first_two(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))[:2]


def _ordered(found: list[str], positive: str | None) -> tuple[str, str]:
    first, second = found
    if positive is not None:
        wanted = [name for name in found if name.casefold() == positive.strip().casefold()]
        if len(wanted) != 1:
            raise LabError(f"no label is {positive!r}: the labels are {first!r} and {second!r}")
        return (second if wanted[0] == first else first), wanted[0]
    plain = {name.casefold(): name for name in found}
    for negative, known in _KNOWN:
        if {negative, known} == set(plain):
            return plain[negative], plain[known]
    raise LabError(f"the labels are {first!r} and {second!r}: say which one is positive (--positive)")
