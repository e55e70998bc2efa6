"""Which columns of a table hold the text, its label, and what else is known of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probes.data.tables import Table
from probes.errors import LabError

TEXT_NAMES = ("text", "prompt", "sentence")
LABEL_NAMES = ("label", "target", "y")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; "" is a guess: text, prompt or sentence; label, target or y; group, dataset, pair if they are there."""

    text: str = ""
    label: str = ""
    group: str = ""
    dataset: str = ""
    pair: str = ""


def choose(table: Table, asked: Columns, *, labelled: bool = True) -> Columns:
    """Every column that is there under its real name, and "" for the others.

    labelled: False if no labels are wanted. Raises LabError naming the file and its columns if one that must be is missing, or
    if several might be meant.
    """
    return Columns(
        text=_one(table, asked.text, TEXT_NAMES, "--text"),
        label=_one(table, asked.label, LABEL_NAMES, "--label") if labelled else "",
        group=_perhaps(table, asked.group, "group"),
        dataset=_perhaps(table, asked.dataset, "dataset"),
        pair=_perhaps(table, asked.pair, "pair"),
    )


def texts_of(table: Table, column: str) -> list[str]:
    """The column's texts, stripped of space at both ends. Raises LabError naming the row for one that is empty or no text."""
    return [_text(table, row, column) for row in range(len(table.rows))]


def ids_of(table: Table, column: str) -> list[str]:
    """The column's values as texts; a missing one, or no column, is ""."""
    if not column:
        return [""] * len(table.rows)
    return [_id(row.get(column)) for row in table.rows]


def values_of(table: Table, column: str) -> list[Any]:
    return [row.get(column) for row in table.rows]


def _one(table: Table, asked: str, names: Sequence[str], option: str) -> str:
    if asked:
        return _named(table, asked)
    found = [column for column in table.columns if column.casefold() in names]
    if len(found) == 1:
        return found[0]
    why = f"has {' and '.join(map(repr, found))}" if found else f"has no column {', '.join(names[:-1])} or {names[-1]}"
    raise LabError(f"{table.name} {why}: name one with {option} (there are: {', '.join(table.columns)})")


def _perhaps(table: Table, asked: str, name: str) -> str:
    if asked:
        return _named(table, asked)
    return name if name in table.columns else ""


def _named(table: Table, asked: str) -> str:
    if asked not in table.columns:
        raise LabError(f"{table.name} has no column {asked!r} (there are: {', '.join(table.columns)})")
    return asked


def _text(table: Table, row: int, column: str) -> str:
    value = table.rows[row].get(column)
    if value is None:
        raise LabError(f"{table.place(row)}: there is no text ({column!r})")
    if not isinstance(value, str):
        raise LabError(f"{table.place(row)}: {column!r} is not a text but {type(value).__name__}")
    if not (text := value.strip()):
        raise LabError(f"{table.place(row)}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LabError(f"{table.place(row)}: the text holds half a surrogate pair, which is no character") from None
    return text


def _id(value: Any) -> str:
    return "" if value is None else str(value).strip()
