"""Read a file that someone else put there: only a regular one, beneath the root, only so many bytes, never waiting."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.errors import ArtifactError, ArtifactReason

# O_NONBLOCK: opening a FIFO that nobody writes to must not wait. O_NOFOLLOW: links were resolved and judged before.
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = _OPEN_FILE | os.O_DIRECTORY


def real_path_beneath(path: Path, root: Path) -> Path:
    """Resolve ``path`` to a place without links, relative to the resolved ``root``.

    Links that stay inside the root are followed, so Kubernetes' ``..data`` layout works. Raises
    ArtifactError(UNSAFE_PATH) for a NUL, for ``..`` written in the path, and for a path that does not lie in the root,
    as written or once resolved.
    """
    if "\0" in str(path):
        raise ArtifactError(ArtifactReason.UNSAFE_PATH, "the path holds a NUL")
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        raise ArtifactError(ArtifactReason.UNSAFE_PATH, f"{path.name!r} does not lie in the artifact root")
    try:
        real_root, real = root.resolve(), path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, in Python 3.11
        raise ArtifactError(ArtifactReason.UNSAFE_PATH, f"{path.name!r} cannot be resolved") from None
    if not real.is_relative_to(real_root):
        raise ArtifactError(ArtifactReason.UNSAFE_PATH, f"{path.name!r} leads out of the artifact root")
    return real.relative_to(real_root)


def list_names(folder: Path, *, root: Path, limit: int) -> list[str]:
    """List what lies in ``folder``, sorted. Raises ArtifactError if it is no folder or holds over ``limit`` names."""
    inside = real_path_beneath(folder, root)
    with _refusing(folder.name), _opened_folder(root.resolve(), inside.parts) as fd, os.scandir(fd) as entries:
        names: list[str] = []
        for entry in entries:
            if len(names) == limit:
                raise ArtifactError(ArtifactReason.TOO_LARGE, f"{folder.name!r} holds more than {limit} entries")
            names.append(entry.name)
    return sorted(names)


def read_regular(path: Path, *, root: Path, limit_bytes: int) -> bytes:
    """Read one regular file beneath ``root``, once, without ever waiting for another process.

    Every folder on the way is opened without following links, so a link swapped in after the check is an error and not
    a way out. Raises ArtifactError: UNSAFE_PATH, NOT_REGULAR (FIFO, device, socket, folder), MISSING_FILE, UNREADABLE,
    TOO_LARGE.
    """
    inside = real_path_beneath(path, root)
    with _refusing(path.name), _opened_folder(root.resolve(), inside.parts[:-1]) as folder:
        # Before the open as well as after it: opening some devices already does something.
        _must_be_regular(os.stat(inside.name, dir_fd=folder, follow_symlinks=False), path.name)
        fd = os.open(inside.name, _OPEN_FILE, dir_fd=folder)
        with os.fdopen(fd, "rb") as file:
            _must_be_regular(os.fstat(fd), path.name)
            data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ArtifactError(ArtifactReason.TOO_LARGE, f"{path.name!r} is larger than {limit_bytes} bytes")
    return data


def _must_be_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(ArtifactReason.NOT_REGULAR, f"{name!r} is not a regular file")


@contextmanager
def _opened_folder(root: Path, parts: tuple[str, ...]) -> Iterator[int]:
    fd = os.open(root, _OPEN_FOLDER)
    try:
        for part in parts:
            deeper = os.open(part, _OPEN_FOLDER, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn the system's errors into typed refusals that name the entry and nothing of the path before it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(_REASONS.get(error.errno or 0, ArtifactReason.UNREADABLE), _text(name, error)) from None


def _text(name: str, error: OSError) -> str:
    return f"{name!r} cannot be read: {os.strerror(error.errno or 0).lower()}"


_REASONS = {
    errno.ENOENT: ArtifactReason.MISSING_FILE,
    errno.ENOTDIR: ArtifactReason.MISSING_FILE,
    errno.ELOOP: ArtifactReason.UNSAFE_PATH,
    errno.ENAMETOOLONG: ArtifactReason.UNSAFE_PATH,
    errno.ENXIO: ArtifactReason.NOT_REGULAR,  # a socket
}
