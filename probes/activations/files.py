"""Files of an activation store appear whole or not at all, also when the disk is full or the process is killed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from probes.errors import LabError

TEMPORARY = ".part"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Write ``path`` beside its place and rename it there once every byte is on the disk.

    Raises LabError naming the file if the system refuses; what was there before is then still there.
    """
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
            _sync_folder(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LabError(_refused(path, error)) from None


def forget_parts(folder: Path) -> None:
    """Delete what killed writers left. Only for whoever holds the folder's lock."""
    for left in folder.glob(f".*{TEMPORARY}"):
        left.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return f"{path}: the disk is full; what is finished is kept, and the same command goes on once there is room"
    return f"{path} cannot be written: {os.strerror(error.errno or 0).lower()}"


def _sync_folder(folder: Path) -> None:
    """So that the rename, too, outlives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
