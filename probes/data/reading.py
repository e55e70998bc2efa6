"""From labelled files to the texts that a probe is made on: every row checked, none twice, those alike in one group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from probes.data.alike import alike_groups
from probes.data.columns import Columns, choose, ids_of, texts_of, values_of
from probes.data.labels import Labels, read_labels
from probes.data.tables import Table, read_table
from probes.data.texts import LabelledText, data_digest, text_key
from probes.errors import LabError


@dataclass(frozen=True, slots=True)
class Sources:
    """What to read, and how. data, outside: files, or sets of an installed package; see `read_table`.

    positive: the label that counts as positive, where the labels do not say it. negative_only: no labels are read, every row is
    a negative one (benign rows to set a threshold on). limit: of each file at most so many texts, half under each label if there
    are labels; 0: all.
    """

    data: tuple[str, ...]
    outside: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    positive: str | None = None
    negative_only: bool = False
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """Rows that are not among the texts, and why: they repeat another, or are found under both labels, or the limit was met.

    lost_pairs: texts whose partner is one of those rows, and that stay without one.
    """

    rows: int
    duplicates: int
    both_labels: int
    beyond_limit: int
    lost_pairs: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Texts with the places that they came from; outside: names of the data sets that are for evaluation alone."""

    texts: tuple[LabelledText, ...]
    places: tuple[str, ...]
    positive_label: str
    negative_label: str
    outside: tuple[str, ...]
    told: Told

    @property
    def name(self) -> str:
        return " + ".join(sorted({text.dataset for text in self.texts} - set(self.outside)))

    @property
    def digest(self) -> str:
        return data_digest(self.texts)


@dataclass(frozen=True, slots=True)
class _Row:
    text: LabelledText
    place: str


def load_texts(sources: Sources) -> Loaded:
    """Read all files. Raises LabError naming the file and the row for whatever is missing, empty or not what it should be."""
    if sources.limit and sources.limit < 2:
        raise LabError("--limit must leave a text of each label: at least 2")
    inside, labels = _read_all(sources.data, sources)
    outside = [row for source in sources.outside for row in _read_all((source,), _outside(sources))[0]]
    names = _outside_names(inside, outside)
    kept, duplicates, both = _unique([inside, outside])
    within = list(_within(kept, sources))
    rows = _grouped(_paired(within))
    told = Told(
        rows=len(inside) + len(outside),
        duplicates=duplicates,
        both_labels=both,
        beyond_limit=len(kept) - len(within),
        lost_pairs=sum(bool(row.text.pair) for row in within) - sum(bool(row.text.pair) for row in rows),
    )
    _check_classes(rows, names, sources)
    texts = tuple(row.text for row in rows)
    return Loaded(texts, tuple(row.place for row in rows), labels.positive, labels.negative, names, told)


def _outside(sources: Sources) -> Sources:
    return replace(sources, data=(), outside=())


def _read_all(files: Sequence[str], sources: Sources) -> tuple[list[_Row], Labels]:
    """Rows of files whose labels mean the same: one may hold the positive texts and another the negative ones."""
    tables = [read_table(file) for file in files]
    columns = [choose(table, sources.columns, labelled=not sources.negative_only) for table in tables]
    labels = _labels(tables, columns, sources)
    values = iter(labels.values.tolist())
    rows = [
        row for table, chosen in zip(tables, columns, strict=True) for row in _rows(table, chosen, values)
    ]  # values are taken in the order of the rows
    _check_pairs(rows)
    return rows, labels


def _labels(tables: Sequence[Table], columns: Sequence[Columns], sources: Sources) -> Labels:
    places = [table.place(row) for table in tables for row in range(len(table.rows))]
    if sources.negative_only:
        import numpy as np

        return Labels(np.zeros(len(places), dtype=np.bool_), sources.positive or "positive", "negative")
    values = [value for table, chosen in zip(tables, columns, strict=True) for value in values_of(table, chosen.label)]
    try:
        return read_labels(values, _positive_among(values, sources), lambda index: places[index])
    except LabError as error:
        raise LabError(_with_files(str(error), tables, places)) from None


def _positive_among(values: Sequence[object], sources: Sources) -> str | None:
    """An outside set may spell its labels otherwise than the data that ``positive`` was said of, where its own are plain."""
    wanted = sources.positive
    if wanted is None or sources.data:
        return wanted
    return wanted if wanted.strip().casefold() in {str(value).strip().casefold() for value in values} else None


def _with_files(text: str, tables: Sequence[Table], places: Sequence[str]) -> str:
    return text if text.startswith(tuple(places)) else f"{', '.join(table.name for table in tables)}: {text}"


def _rows(table: Table, columns: Columns, labels: Iterator[bool]) -> Iterator[_Row]:
    groups, datasets, pairs = (ids_of(table, name) for name in (columns.group, columns.dataset, columns.pair))
    for number, text in enumerate(texts_of(table, columns.text)):
        labelled = LabelledText(
            text,
            next(labels),
            text_key(text),
            group=groups[number],
            dataset=datasets[number] or table.stem,
            pair=f"{table.stem}:{pairs[number]}" if pairs[number] else "",
        )
        yield _Row(labelled, table.place(number))


def _check_pairs(rows: Sequence[_Row]) -> None:
    members: dict[str, list[_Row]] = {}
    for row in rows:
        if row.text.pair:
            members.setdefault(row.text.pair, []).append(row)
    for pair, found in members.items():
        if len(found) != 2 or found[0].text.label == found[1].text.label:
            name = pair.partition(":")[2]
            raise LabError(
                f"{found[0].place}: the pair {name!r} has {len(found)} texts "
                f"({sum(row.text.label for row in found)} positive); a pair is one positive and one negative text"
            )


def _outside_names(inside: Sequence[_Row], outside: Sequence[_Row]) -> tuple[str, ...]:
    names = {row.text.dataset for row in outside}
    if both := sorted(names & {row.text.dataset for row in inside}):
        raise LabError(f"{both[0]!r} is the name of an outside set and of a data set; an outside set is kept apart")
    return tuple(sorted(names))


def _unique(parts: Sequence[Sequence[_Row]]) -> tuple[list[_Row], int, int]:
    """The first of rows with equal texts, none of a text under both labels; what an earlier part has is not in a later one.

    Also how many rows repeat another, and how many are of a text under both labels.
    """
    kept: list[_Row] = []
    seen: set[str] = set()
    both = duplicates = 0
    for part in parts:
        labels: dict[str, set[bool]] = {}
        for row in part:
            labels.setdefault(row.text.key, set()).add(row.text.label)
        for row in part:
            if row.text.key in seen:
                duplicates += 1
            elif len(labels[row.text.key]) > 1:
                both += 1
            else:
                seen.add(row.text.key)
                kept.append(row)
    return kept, duplicates, both


def _within(rows: Sequence[_Row], sources: Sources) -> Iterator[_Row]:
    """At most ``limit`` texts of each file, half under each label, chosen by their keys: always the same ones. Pairs stay whole."""
    most = sources.limit if sources.negative_only else sources.limit // 2  # of a label
    if not most:
        yield from rows
        return
    taken: Counter[tuple[str, bool]] = Counter()
    chosen = set()
    for row in sorted(rows, key=lambda row: _draw(row.text)):
        part = (_file(row), row.text.label)
        if taken[part] < most:
            taken[part] += 1
            chosen.add(row.text.key)
    yield from (row for row in rows if row.text.key in chosen)


def _file(row: _Row) -> str:
    return row.place.rpartition(" ")[0]


def _draw(text: LabelledText) -> str:
    return hashlib.sha256(text.pair.encode()).hexdigest() if text.pair else text.key


def _paired(rows: Iterable[_Row]) -> list[_Row]:
    """Without the ids of pairs of which only one text is left."""
    held = list(rows)
    counts = Counter(row.text.pair for row in held)
    return [row if counts[row.text.pair] == 2 else replace(row, text=replace(row.text, pair="")) for row in held]


def _grouped(rows: Sequence[_Row]) -> list[_Row]:
    together = [
        [f"{name} {value}" for name, value in (("group", row.text.group), ("pair", row.text.pair)) if value]
        for row in rows
    ]
    heads = alike_groups([row.text.text for row in rows], together, [row.text.dataset for row in rows])
    sizes = Counter(heads)
    groups = [rows[head].text.key if sizes[head] > 1 else "" for head in heads]
    return [replace(row, text=replace(row.text, group=group)) for row, group in zip(rows, groups, strict=True)]


def _check_classes(rows: Sequence[_Row], outside: Sequence[str], sources: Sources) -> None:
    """Duplicates may have taken a whole class with them."""
    left = {row.text.label for row in rows if row.text.dataset not in outside}
    if len(left) < (1 if sources.negative_only else 2):
        raise LabError(
            f"{', '.join(sources.data)}: once duplicates and texts under both labels are out, "
            f"{'one class' if left else 'nothing'} is left"
        )
