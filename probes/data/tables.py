"""Rows of a labelled file, whatever its format: CSV and TSV (also packed with zstd), JSON lines, Parquet, an installed set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.errors import LabError

PACKAGED = "sae:"
PACKAGE = "sae_probes"
INSTALL = "pip install --no-deps sae-probes==0.4.2"
_FIELD_LIMIT = 1 << 27  # characters of one field


@dataclass(frozen=True, slots=True)
class Table:
    """name: for people, and of the data set. columns: in the file's order. numbers: of each row, counted as the file does."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    counted: str  # "row" (without the header) or "line"

    def place(self, row: int) -> str:
        """Where row ``row`` (from 0) stands, in words."""
        return f"{self.name} {self.counted} {self.numbers[row]}"

    @property
    def stem(self) -> str:
        """The name without its endings and the folder: the name of the data set."""
        return Path(self.name).name.partition(".")[0]


def read_table(source: str) -> Table:
    """Read a file, or "sae:92_glue_sst2", a set of the installed package sae-probes.

    A CSV whose header has no comma may have semicolons or tabs. Raises LabError naming the file, and the row or line, if it is
    missing, of an unknown format, not UTF-8 or damaged.
    """
    if source.startswith(PACKAGED):
        return _packaged(source.removeprefix(PACKAGED))
    path = Path(source)
    for suffix, read in _READERS.items():
        if path.name.casefold().endswith(suffix):
            return _filled(read(path))
    raise LabError(f"{source}: not a format that is read here; there are {', '.join(_READERS)} and {PACKAGED}NAME")


def _csv(path: Path) -> Table:
    return _parse_csv(path.name, _text(path.name, _bytes(path)), ",")


def _tsv(path: Path) -> Table:
    return _parse_csv(path.name, _text(path.name, _bytes(path)), "\t")


def _packed_csv(path: Path) -> Table:
    return _parse_csv(path.name, _text(path.name, _unpacked(path)), ",")


def _parse_csv(name: str, text: str, delimiter: str) -> Table:
    csv.field_size_limit(_FIELD_LIMIT)
    delimiter = _delimiter(text, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Mapping[str, Any]] = []
    try:
        columns = _header(name, next(reader, []))
        for fields in reader:
            if fields:  # a blank line is none
                rows.append(_row(name, columns, fields, len(rows) + 1))
    except csv.Error as error:
        raise LabError(f"{name} line {reader.line_num}: {error}") from None
    return Table(name, columns, rows, range(1, len(rows) + 1), "row")


def _delimiter(text: str, usual: str) -> str:
    """What parts the header's columns: where a comma is the decimal mark, spreadsheets write semicolons, and name it CSV."""
    head = text.partition("\n")[0]
    return next((mark for mark in (usual, ";", "\t") if mark in head), usual)


def _header(name: str, fields: list[str]) -> tuple[str, ...]:
    columns = tuple(field.strip() for field in fields)
    if not any(columns):
        raise LabError(f"{name} is empty: its first line must name the columns")
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise LabError(f"{name}: the column {twice[0]!r} is there twice")
    return columns


def _row(name: str, columns: tuple[str, ...], fields: list[str], number: int) -> dict[str, str]:
    if len(fields) != len(columns):
        raise LabError(f"{name} row {number} has {len(fields)} fields, and the header {len(columns)}")
    return dict(zip(columns, fields, strict=True))


def _jsonl(path: Path) -> Table:
    rows, numbers = [], []
    columns: dict[str, None] = {}
    for number, line in enumerate(_text(path.name, _bytes(path)).split("\n"), start=1):
        if line.strip():
            rows.append(_object(f"{path.name} line {number}", line))
            numbers.append(number)
            columns.update(dict.fromkeys(rows[-1]))
    return Table(path.name, tuple(columns), rows, numbers, "line")


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LabError(f"{place} is not sound JSON: {error}") from None
    if not isinstance(fields, dict):
        raise LabError(f"{place} is not an object")
    return fields


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    _must_be_there(path)
    try:
        table = parquet.read_table(path)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LabError(f"{path.name} cannot be read as Parquet: {error}") from None
    return Table(path.name, tuple(table.column_names), rows, range(1, len(rows) + 1), "row")


def _packaged(name: str) -> Table:
    from probes.smollm2 import ModelNotInstalledError, package_folder

    try:
        folder = package_folder(PACKAGE, INSTALL) / "data" / "cleaned_data"
    except ModelNotInstalledError as error:
        raise LabError(f"{PACKAGED}{name}: {error}") from None
    path = folder / f"{Path(name).name}.csv.zst"
    if not path.is_file():
        raise LabError(f"{PACKAGED}{name} is no set of {PACKAGE}{_near(name, folder)}")
    return _packed_csv(path)


def _near(name: str, folder: Path) -> str:
    import difflib

    names = sorted(path.name.partition(".")[0] for path in folder.glob("*.csv.zst"))
    alike = [one for one in names if name.casefold() in one.casefold()] or difflib.get_close_matches(name, names, 5)
    return f"; did you mean {', '.join(alike[:5])}?" if alike else ""


_READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".csv.zst": _packed_csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _filled(table: Table) -> Table:
    if not table.rows:
        raise LabError(f"{table.name} has no rows")
    return table


def _must_be_there(path: Path) -> None:
    if not path.is_file():
        raise LabError(f"{path} is not a file" if path.exists() else f"{path} is not there")


def _bytes(path: Path) -> bytes:
    _must_be_there(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None


def _unpacked(path: Path) -> bytes:
    import zstandard

    data, parts = _bytes(path), []
    try:
        while data:  # frame by frame: the reader of streams takes one that is cut short for a whole one
            frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(data))
            if not frame.eof:
                raise LabError(f"{path.name} is cut short")
            data = frame.unused_data
    except zstandard.ZstdError as error:
        raise LabError(f"{path.name} is not sound zstd: {error}") from None
    return b"".join(parts)


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LabError(
            f"{name} line {line} is not UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8"
        ) from None
