"""The sketches of closed ticks as Parquet: one row per circuit, slice and tick, integers only.

A file is written whole, under another name, and then given its own: whoever reads finds it complete or not at all, and once it is
told, a power loss does not take it. What is in one is never changed. A kill loses the ticks that were not yet in a file,
`rows_limit` rows at most.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.circuits.published import publish
from sidecar.circuits.tick import PARTS, SINGLE, Shape, TickKey, TickRow

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = b"stethoscope.sketch/1"
_KEY = ("model_hash", "spec_hash", "circuit", "slice")


class ArchiveError(Exception):
    """A file is not an archive of sketches, or cannot be read or written: the text names it."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """Where it lies, and the hex SHA-256 of its bytes."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Of several files. unsound: of each that was passed over its path, and why it cannot be read. files: the others."""

    rows: list[TickRow]
    unsound: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def write_archive(path: Path, rows: Sequence[TickRow]) -> ArchiveFile:
    """All of them, in the order of their keys: same rows, same bytes. Raises ArchiveError, also if it is there already."""
    from pyarrow import parquet

    table = _table(sorted(rows, key=lambda one: (one.key, one.sources)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, temporary, compression="zstd")
        publish(temporary, path)
    except FileExistsError:
        raise ArchiveError(f"{path}: there is a file already") from None
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return ArchiveFile(path, digest_of(path))


def read_archives(paths: Iterable[Path], *, skip_unsound: bool = False) -> ReadRows:
    """The rows of files, and of all files of folders. Raises ArchiveError, also if there is none: nothing can be said of that."""
    paths = list(paths)
    found = read_files(archive_files(paths), skip_unsound=skip_unsound)
    if not found.rows:
        raise ArchiveError("; ".join((f"{', '.join(map(str, paths))}: no rows", *found.unsound)))
    return found


def read_files(files: Iterable[Path], *, skip_unsound: bool = False) -> ReadRows:
    """All their rows. Raises ArchiveError, which names every one that is unsound, unless these are to be passed over."""
    rows: list[TickRow] = []
    unsound: list[str] = []
    sound: list[Path] = []
    for path in files:
        try:
            rows += read_archive(path)
        except ArchiveError as error:
            unsound.append(str(error))
        else:
            sound.append(path)
    if unsound and not skip_unsound:
        raise ArchiveError("; ".join(unsound))
    return ReadRows(rows, tuple(unsound), tuple(sound))


def archive_files(paths: Iterable[Path]) -> list[Path]:
    """Folders are replaced by their files, in the order of their names. Raises ArchiveError if one has none, or is not there."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ArchiveError(f"{path}: no such file")
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise ArchiveError(f"{path}: no Parquet file in this folder")
        found += files
    return found


def read_archive(path: Path) -> list[TickRow]:
    """Raises ArchiveError: nothing in it is believed before its types and lengths are those of sketches."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path} cannot be read as Parquet: {str(error)[:200]}") from None
    if (table.schema.metadata or {}).get(b"format") != FORMAT or table.schema.remove_metadata() != _schema():
        raise ArchiveError(f"{path} is no archive of sketches, or of another version")
    if any(column.null_count for column in table.columns):
        raise ArchiveError(f"{path} has empty fields")
    try:
        return list(_rows(table))
    except ValueError as error:
        raise ArchiveError(f"{path}: {error}") from None


def digest_of(path: Path) -> str:
    """Raises ArchiveError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from None


class ArchiveWriter:
    """Keeps at most ``rows_limit`` rows until they are a file of ``folder``. One thread's.

    Rows that cannot be written, because the disk is full or the folder is gone, are given up and counted, never waited for.
    """

    def __init__(self, folder: Path, source: str, rows_limit: int = 16_384) -> None:
        self._folder, self._source, self._limit = folder, source, rows_limit
        self._rows: list[TickRow] = []
        self.rows_written = 0
        self.rows_lost = 0

    @property
    def rows_waiting(self) -> int:
        """That are in no file yet."""
        return len(self._rows)

    def add(self, rows: Iterable[TickRow]) -> ArchiveFile | None:
        """The file, if these rows made it due."""
        self._rows.extend(rows)
        return self.flush() if len(self._rows) >= self._limit else None

    def flush(self) -> ArchiveFile | None:
        """Everything kept, as a file; None if there is nothing, or it could not be written."""
        rows, self._rows = self._rows, []
        if not rows:
            return None
        first, last = min(one.key.at_s for one in rows), max(one.key.at_s for one in rows)
        try:
            made = write_archive(self._folder / f"sketch-{first}-{last}-{self._source}.parquet", rows)
        except ArchiveError:
            self.rows_lost += len(rows)
            return None
        self.rows_written += len(rows)
        return made


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in _KEY]
    numbers = [(name, pa.int64()) for name in ("tick_s", "tick", "tokens", *SINGLE)]
    lists = [(name, pa.list_(pa.int64())) for name in PARTS]
    return pa.schema([*texts, *numbers, ("sources", pa.list_(pa.string())), *lists])


def _table(rows: Sequence[TickRow]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {name: [getattr(one.key, name) for one in rows] for name in (*_KEY, "tick_s", "tick")}
    columns["tokens"] = [one.shape.tokens for one in rows]
    columns |= {name: [one.single(name) for one in rows] for name in SINGLE}
    columns["sources"] = [list(one.sources) for one in rows]
    columns |= {name: [one.part(name) for one in rows] for name in PARTS}
    return pa.table(columns, schema=_schema().with_metadata({"format": FORMAT}))


def _rows(table: pa.Table) -> Iterable[TickRow]:
    columns = {name: table[name].to_pylist() for name in (*_KEY, "tick_s", "tick", "tokens", "sources")}
    single = np.stack([table[name].to_numpy() for name in SINGLE], axis=1) if len(table) else np.zeros((0, len(SINGLE)))
    parts = [_split(table[name]) for name in PARTS]
    for at in range(len(table)):
        key = TickKey(*(columns[name][at] for name in (*_KEY, "tick_s", "tick")))
        lists = [part[at] for part in parts]
        shape = Shape(len(lists[0]), columns["tokens"][at])
        if [len(one) for one in lists] != list(shape.sizes[1:]) or key.tick_s < 1 or not columns["sources"][at]:
            raise ValueError(f"row {at + 1} is not of the lengths of a sketch")
        counts = np.concatenate((single[at], *lists))
        if counts[: len(SINGLE)].min() < 0 or shape.tokens < 1:
            raise ValueError(f"row {at + 1} counts less than nothing")
        yield TickRow(key, tuple(columns["sources"][at]), shape, counts)


def _split(column: pa.ChunkedArray) -> list[Any]:
    """The lists of a column as int64 arrays, without a Python number for each."""
    found: list[Any] = []
    for chunk in column.chunks:
        ends = chunk.offsets.to_numpy()
        flat = chunk.values.to_numpy()
        found.extend(flat[a:b] for a, b in pairwise(ends))
    return found
