"""The records of a folder, each naming the one that was written before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sidecar.circuits.record import AlarmRecord, RecordError, read_record

_NAMES = "[0-9]" * 10 + "-*.json"


def records_in(folder: Path) -> list[Path]:
    """By name: the moment of the alarm, then its circuit. That is not the order in which they were written."""
    return sorted(folder.glob(_NAMES))


class Chain:
    """What each record of a folder follows. Files are read once: none is ever changed. One thread's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._links: dict[str, tuple[str, str | None]] = {}  # by name: its own digest, and that of the one before it
        self.unsound: dict[str, str] = {}  # by name: what is wrong with a file that is no record

    def look(self) -> list[str]:
        """Take up what is new. Returns the names of the files among it that are no records: they are passed over."""
        new = [path for path in records_in(self._folder) if path.name not in self._links.keys() | self.unsound.keys()]
        for path in new:
            try:
                self.add(read_record(path), path.name)
            except RecordError as error:
                self.unsound[path.name] = str(error)
        return [path.name for path in new if path.name in self.unsound]

    def add(self, record: AlarmRecord, name: str) -> None:
        """One that was read or written."""
        self._links[name] = (record.content_digest, record.previous)

    @property
    def newest(self) -> str | None:
        """The digest of the record that no other one follows; of several, where the chain is forked, the last by name."""
        followed = {previous for _, previous in self._links.values()}
        ends = [name for name, (digest, _) in self._links.items() if digest not in followed]
        return self._links[max(ends)][0] if ends else None

    def breaks(self) -> Iterator[str]:
        """Where this is not one chain from one first record to one newest, in words. That the newest were cut off is not seen."""
        yield from (f"{name} cannot be read: {why}" for name, why in sorted(self.unsound.items()))
        digests = {digest for digest, _ in self._links.values()}
        first_to_follow: dict[str | None, str] = {}
        for name, (_, previous) in sorted(self._links.items()):
            if previous is not None and previous not in digests:
                yield f"{name} follows a record that is not there, or was changed: {previous[:12]}"
            elif previous in first_to_follow:
                what = "no record" if previous is None else "the same record"
                yield f"{name} follows {what}, as {first_to_follow[previous]} does: one was put in, or two sidecars wrote here"
            first_to_follow.setdefault(previous, name)
