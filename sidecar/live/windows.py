"""Deploy windows: times in which the model is meant to change. Declared by people, each entry chained to the one before it."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from probes.strictjson import canonical, parse_strict

FILE = "deploy-windows.jsonl"
_LIMIT_BYTES = 16 << 20


class WindowError(Exception):
    """The file of deploy windows cannot be read or written, or somebody changed it: the text is for people."""


@dataclass(frozen=True, slots=True)
class Window:
    """Open from ``from_s`` to ``until_s``, seconds since the epoch; closed early by an entry that ends when it was made.

    previous: SHA-256 of the entry before it, so that none can be taken out or changed unnoticed.
    """

    at_s: int
    from_s: int
    until_s: int
    who: str
    why: str
    previous: str


def declare(folder: Path, from_s: int, until_s: int, why: str, at_s: int) -> Window:
    """Append an entry. Raises WindowError, also if the file was tampered with."""
    before = list(_lines(folder))
    windows(folder)  # an unsound file is not gone on with
    previous = _digest(before[-1]) if before else ""
    made = Window(at_s, from_s, until_s, getpass.getuser(), why, previous)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "ab") as file:
            file.write(canonical(asdict(made)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WindowError(f"{folder / FILE} cannot be written: {error.strerror}") from None
    return made


def windows(folder: Path) -> list[Window]:
    """All entries, the oldest first. Raises WindowError if one was changed, taken out or put in between."""
    found: list[Window] = []
    previous = ""
    for line in _lines(folder):
        try:
            fields = parse_strict(line)
            made = Window(**fields)
        except (ValueError, TypeError):
            raise WindowError(f"{folder / FILE}: entry {len(found) + 1} is none") from None
        if made.previous != previous:
            raise WindowError(f"{folder / FILE}: entry {len(found) + 1} does not follow the one before it")
        found.append(made)
        previous = _digest(line)
    return found


def is_open(entries: list[Window], now_s: float) -> bool:
    """The newest entry decides: one that ends as it is made closes the window before it."""
    return bool(entries) and entries[-1].from_s <= now_s < entries[-1].until_s


def _lines(folder: Path) -> Iterator[bytes]:
    try:
        with (folder / FILE).open("rb") as file:
            data = file.read(_LIMIT_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WindowError(f"{folder / FILE} cannot be read: {error.strerror}") from None
    yield from (line for line in data.splitlines() if line)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
