"""The folder that a recording is written to: one process at a time, one engine for good."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sidecar.record.rows import Recorded
from sidecar.recorded import ENGINE, Origin, RecordedError, differences, read_origin, states_path, write_origin
from sidecar.states_file import StatesFileError, read_states, write_states
from sidecar.types import TapPoint

_LOCK = ".lock"


class RecordFolder:
    """To be used inside ``with``. Entering raises RecordedError if the folder is in use, or holds states of other tap points."""

    def __init__(self, folder: Path, points: Sequence[TapPoint]) -> None:
        self.folder = folder
        self._points = tuple(points)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise RecordedError(f"another process records into {self.folder}") from None
        except OSError as error:
            raise RecordedError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            before = read_origin(self.folder)
            if before is not None:
                self._check_points(before.tap_points)
        except RecordedError:
            self.__exit__()
            raise
        for left in self.folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, origin: Origin) -> None:
        """These states are to be written. Raises RecordedError, naming both sides, if what is there is of something else."""
        before = read_origin(self.folder)
        if before is None:
            try:
                write_origin(self.folder, origin)
            except OSError as error:
                raise RecordedError(f"{self.folder} cannot be written: {error.strerror}") from None
        elif others := differences(before.model, origin.model):
            raise RecordedError(
                f"{self.folder} holds states of another engine ({others}): two are never mixed, record into another folder"
            )

    def has(self, name: str, tokens: Sequence[int]) -> bool:
        """Whether the states of just these tokens are there, whole. Raises RecordedError if the file is of other tokens."""
        path = states_path(self.folder, name)
        try:
            found = read_states(path)
        except StatesFileError:  # missing, cut short or damaged: it is made again
            return False
        if found.token_ids.tolist() != list(tokens):
            raise RecordedError(f"{path} is of other tokens than the prompt of that name: record into another folder")
        return found.layers == len(self._points)

    def write(self, name: str, recorded: Recorded, tokens: Sequence[int] | None) -> None:
        """One file; tokens: None if nobody knows them. Raises RecordedError if the disk refuses."""
        ids = tokens if tokens is not None else [-1] * len(recorded.bits)
        try:
            write_states(states_path(self.folder, name), recorded.bits, recorded.dtype, ids)
        except OSError as error:
            raise RecordedError(f"{self.folder} cannot be written: {error.strerror}") from None

    def _check_points(self, points: Sequence[TapPoint]) -> None:
        if tuple(points) != self._points:
            held, wanted = (",".join(point.name for point in some) for some in (points, self._points))
            raise RecordedError(f"{self.folder / ENGINE}: the folder holds states at {held}, not at {wanted}")
