"""The Unix socket's folder: only this user can reach it, only one server can own it."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from sidecar.errors import ConfigError


class SocketClaim:
    """Makes sure, before anything listens, that the folder is private and that no other server is there.

    ``take`` raises ConfigError naming the problem. The claim is a lock on ``<socket>.lock``: it ends with the process,
    however that ends, so a stale socket file never keeps a new server away.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_fd: int | None = None

    def take(self) -> None:
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_folder(folder)
            self._lock_fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError([f"listen.address: the socket's folder cannot be used: {error.strerror}"]) from None
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise ConfigError([f"listen.address: another sidecar already serves {self._path}"]) from None
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_socket()):
            self.release()
            raise ConfigError([f"listen.address: {self._path} exists and is not a socket"])
        self._path.unlink(missing_ok=True)

    def seal(self) -> None:
        """After the bind: the socket itself is for this user alone. Raises ConfigError if it is not."""
        try:
            self._path.chmod(0o600)
            mode = stat.S_IMODE(self._path.stat().st_mode)
        except OSError as error:
            raise ConfigError([f"listen.address: {self._path} cannot be sealed: {error.strerror}"]) from None
        if mode != 0o600:
            raise ConfigError([f"listen.address: {self._path} could not be given mode 0600"])

    def release(self) -> None:
        """Twice is fine."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def _check_folder(folder: Path) -> None:
    state = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) != 0o700:
        text = f"{folder} must be a folder of this user with mode 0700, so that nobody else can connect"
        raise ConfigError([f"listen.address: {text}"])
