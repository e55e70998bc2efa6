"""Deploy windows: times in which the model is meant to change. Declared by people, each entry chained to the one before it."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from probes.strictjson import canonical, parse_strict

FILE = "deploy-windows.jsonl"
_LIMIT_BYTES = 16 << 20
_NO_FOLDER = "there is no such folder; want the one that circuits.archive names"


class WindowError(Exception):
    """The file of deploy windows cannot be read or written, or somebody changed it: the text is for people."""


@dataclass(frozen=True, slots=True)
class Window:
    """Open from ``from_s`` to ``until_s``, seconds since the epoch; closed early by an entry that ends when it was made.

    previous: SHA-256 of the entry before it, so that none can be taken out or changed unnoticed while another one follows it. The
    newest can be cut off: a window whose end was taken out is open again until ``until_s``, and no longer.
    """

    at_s: int
    from_s: int
    until_s: int
    who: str
    why: str
    previous: str


def declare(folder: Path, from_s: int, until_s: int, why: str, at_s: int) -> Window:
    """Append an entry; one that ends as it begins closes the window that is open.

    Raises WindowError, also if the folder is not there, if the file was tampered with, or if there is no open window to close.
    """
    with _alone(folder):
        entries = windows(folder)  # an unsound file is not gone on with
        if until_s <= from_s and not is_open(entries, at_s):
            raise WindowError(f"{folder}: no deploy window is open there")
        before = list(_lines(folder))
        previous = _digest(before[-1]) if before else ""
        made = Window(at_s, from_s, until_s, _who(), why, previous)
        _append(folder / FILE, canonical(asdict(made)) + b"\n")
    return made


def declared(folder: Path) -> list[Window]:
    """As `windows`, for people: a folder that is not there is a slip of the pen, and no archive without windows."""
    if not folder.is_dir():
        raise WindowError(f"{folder}: {_NO_FOLDER}")
    return windows(folder)


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


def _who() -> str:
    """A container's user often has no name, only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # which of both depends on the version of Python
        return f"uid {os.getuid()}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Between reading what there is and adding to it, nobody else adds."""
    lock = _locked(folder)
    try:
        yield
    finally:
        os.close(lock)  # and with it the lock is gone


def _locked(folder: Path) -> int:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise WindowError(f"{folder}: {_NO_FOLDER}") from None
    except OSError as error:
        raise WindowError(f"{folder} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        os.close(lock)
        raise WindowError(f"{folder} cannot be locked: {error.strerror}") from None
    return lock


def _append(path: Path, line: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WindowError(f"{path} cannot be written: {error.strerror}") from None


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
