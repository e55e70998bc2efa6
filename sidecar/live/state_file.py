"""The file from which circuits go on after a restart: what the worker knew, what the archive holds of it, and the open alarms.

Written whole by the control process, with each tick that it fetched: the evidence in it is never ahead of the archive's rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LIMIT_BYTES = 256 << 20
_DIGEST = 64  # hex digits of SHA-256, before everything else

ArchivedTicks = tuple[int, int, str, str]  # first and last tick of a file, its name, the digest of its bytes


class StateFileError(Exception):
    """There is a file, and it cannot be read or written, or is damaged: the text is for people, and says nothing of where."""


@dataclass(frozen=True, slots=True)
class Saved:
    """As it was when ``tick`` had been fetched. worker: bytes of `Remembered`.

    whole: the rows of all ticks up to then are in ``files``, so that a replay of the evidence has something to read.
    alarms: those that are open or wait for their diagnosis, as `sidecar.live.standing` packs them.
    """

    tick: int
    tick_s: int
    whole: bool
    files: tuple[ArchivedTicks, ...]
    alarms: tuple[dict[str, Any], ...]
    worker: bytes

    def __post_init__(self) -> None:
        if self.tick_s < 1:
            raise ValueError("no length of a tick")


class StateFile:
    """path: None for a sidecar that keeps nothing: it finds nothing, either. One thread's."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> Saved | None:
        """None if there is none. Raises StateFileError."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                data = file.read(_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateFileError(f"it cannot be read: {error.strerror}") from None
        try:
            return _parsed(data)
        except (ValueError, KeyError, TypeError):
            raise StateFileError("it is damaged, or of another version") from None

    def write(self, saved: Saved) -> None:
        """In the place of the one before it, whole. Readable by nobody else. Raises StateFileError."""
        if self._path is None:
            return
        facts = asdict(saved)
        worker = facts.pop("worker")
        body = json.dumps(facts).encode() + b"\n" + worker
        temporary = None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            with os.fdopen(fd, "wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            Path(temporary).replace(self._path)
        except OSError as error:
            if temporary is not None:
                with suppress(OSError):
                    Path(temporary).unlink()
            raise StateFileError(f"it cannot be written: {error.strerror}") from None


def _parsed(data: bytes) -> Saved:
    digest, body = data[:_DIGEST], data[_DIGEST + 1 :]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("other bytes than were written")
    facts, _, worker = body.partition(b"\n")
    told = json.loads(facts)
    files = tuple((int(first), int(last), str(name), str(digest)) for first, last, name, digest in told.pop("files"))
    return Saved(**told | {"files": files, "alarms": tuple(told["alarms"]), "worker": worker})
