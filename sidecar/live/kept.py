"""The archive as the control process writes it: rows of closed ticks, and for an alarm the files that its evidence is in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from sidecar.circuits.archive import ArchiveError, ArchiveFile, ArchiveWriter, read_archive
from sidecar.circuits.chain import Chain
from sidecar.circuits.merge import SketchError, merge
from sidecar.circuits.record import ARCHIVES, About, RecordError, make_record, write_record
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Alarm
from sidecar.live.state_file import ArchivedTicks

FILES = ARCHIVES  # remembered: a record names those of its alarm


class Kept:
    """One thread's. folder: of the archive and of the records beside it; made when the first file is.

    file_ticks: a file holds at most so many.
    """

    def __init__(self, folder: Path, source: str, file_ticks: int) -> None:
        self._folder, self._file_ticks = folder, file_ticks
        self._writer = ArchiveWriter(folder, source)
        self._files: deque[tuple[int, int, ArchiveFile]] = deque(maxlen=FILES)
        self._chain = Chain(folder)
        self._first: int | None = None
        self._last = 0
        self.records = 0
        self.records_lost = 0
        self.problem = ""  # of the last record that could not be written
        self.passed_over: list[
            str
        ] = []  # names of files that should be records and are none, since somebody last asked

    @property
    def rows_written(self) -> int:
        return self._writer.rows_written

    @property
    def rows_lost(self) -> int:
        return self._writer.rows_lost

    @property
    def whole(self) -> bool:
        """Whether everything that was ever added is in a file."""
        return not self._writer.rows_waiting and not self._writer.rows_lost

    @property
    def files(self) -> tuple[ArchivedTicks, ...]:
        """The newest, as they outlive the process."""
        return tuple((first, last, one.path.name, one.digest) for first, last, one in self._files)

    def restore(self, files: Iterable[ArchivedTicks]) -> bool:
        """Know of files from before the start, if they are all still there; whether they are."""
        found = [
            (first, last, ArchiveFile(self._folder / Path(name).name, digest)) for first, last, name, digest in files
        ]
        if not all(one.path.is_file() for _, _, one in found):
            return False
        self._files.extend(found)
        return True

    def add(self, tick: int, rows: Iterable[TickRow]) -> None:
        """Keep the rows of one tick. Ticks come in order, but for a clock that was set back: a file is of times in one order."""
        if tick < self._last:
            self.flush()
        self._first = tick if self._first is None else self._first
        self._last = tick
        self._note(self._writer.add(rows))
        if tick - (self._first or tick) + 1 >= self._file_ticks:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        self._note(self._writer.flush())

    def _note(self, made: ArchiveFile | None) -> None:
        if made is not None:
            self._files.append((self._first if self._first is not None else self._last, self._last, made))
            self._first = None

    def record(self, alarm: Alarm, about: About) -> str:
        """Write an alarm's record, with the files that it rests on; its name, or "" if that could not be: that is counted."""
        self.flush()
        files = [one for first, last, one in self._files if last > alarm.since.tick and first <= alarm.tick]
        try:
            rows = merge(
                row
                for one in files
                for row in read_archive(one.path)
                if (row.key.circuit, row.key.slice) == (alarm.watched.circuit, alarm.watched.slice)
            ).rows
            record = make_record(alarm, rows, files, about, self._before())
            path = write_record(record, self._folder)
        except (ArchiveError, SketchError, RecordError) as error:
            self.records_lost += 1
            self.problem = str(error)
            return ""
        self._chain.add(record, path.name)
        self.records += 1
        return path.name

    def _before(self) -> str | None:
        """The digest of the record that was written last. One that cannot be read costs no other: it is passed over, and told."""
        self.passed_over += self._chain.look()
        return self._chain.newest
