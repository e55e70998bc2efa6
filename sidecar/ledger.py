"""Nothing is lost: every step batch, and every row, ends in exactly one outcome and is booked once.

The counts lie in a mapping of 64-bit words. If that is a file they survive a kill without a sync per batch: what was received
and had no outcome when the process died is booked as dropped{process_killed} by the next one.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sidecar.errors import ConfigError, DropReason, RejectReason

_HEADER = 8192  # names of the words, so that another version with other reasons reads them right
_LOOKS = 16  # at counts that stand still: a look takes microseconds, a batch a millisecond
_UNITS = ("step_batches", "rows")
_OUTCOMES = (
    "scored",
    *(f"dropped.{one.value}" for one in DropReason),
    *(f"rejected.{one.value}" for one in RejectReason),
)
_WORDS = ("received", *_OUTCOMES)
_NAMES = tuple(f"{unit}.{word}" for unit in _UNITS for word in _WORDS)


@dataclass(frozen=True, slots=True)
class LedgerCounts:
    """One side of the ledger at one moment; ``balanced`` is the identity that every scrape must show."""

    received: int
    scored: int
    dropped: Mapping[DropReason, int]
    rejected: Mapping[RejectReason, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        ended = self.scored + sum(self.dropped.values()) + sum(self.rejected.values())
        return self.received == ended + self.in_flight and self.in_flight >= 0  # below 0: one was booked twice


class Account:
    """Integer counts of one unit (step batches, or rows). One writer; what is received is counted before its outcome.

    >>> account = Account()
    >>> account.receive(3); account.score(2); account.drop(DropReason.SCORE_NON_FINITE, 1)
    >>> account.counts().balanced, account.counts().in_flight
    (True, 0)
    """

    def __init__(self, words: memoryview | None = None) -> None:
        self._words = memoryview(bytearray(8 * len(_WORDS))).cast("q") if words is None else words
        self._dropped = {one: _WORDS.index(f"dropped.{one.value}") for one in DropReason}
        self._rejected = {one: _WORDS.index(f"rejected.{one.value}") for one in RejectReason}

    def receive(self, n: int) -> None:
        self._words[0] += n

    def score(self, n: int) -> None:
        self._words[1] += n

    def drop(self, reason: DropReason, n: int) -> None:
        self._words[self._dropped[reason]] += n

    def reject(self, reason: RejectReason, n: int) -> None:
        self._words[self._rejected[reason]] += n

    @property
    def in_flight(self) -> int:
        return self._words[0] - sum(self._words[1:])

    def counts(self) -> LedgerCounts:
        return counts_of(self._words.tolist())

    def release(self) -> None:
        self._words.release()


def counts_of(words: list[int]) -> LedgerCounts:
    """Give names to the words of an account."""
    received, scored, *rest = words
    return LedgerCounts(
        received,
        scored,
        MappingProxyType(dict(zip(DropReason, rest, strict=False))),
        MappingProxyType(dict(zip(RejectReason, rest[len(DropReason) :], strict=True))),
        received - scored - sum(rest),
    )


NOTHING = counts_of([0] * len(_WORDS))


class Ledger:
    """The two accounts: step batches, and rows (one row is one token at one tap point)."""

    def __init__(self, mapping: mmap.mmap | None = None) -> None:
        self._mapping = mapping
        size = 8 * len(_WORDS)
        self.step_batches, self.rows = (
            Account(None if mapping is None else memoryview(mapping)[start : start + size].cast("q"))
            for start in (_HEADER, _HEADER + size)
        )

    def book_killed(self) -> tuple[int, int]:
        """What a process that was killed had received and not ended. Returns how many batches and rows."""
        gaps = tuple(max(0, account.in_flight) for account in (self.step_batches, self.rows))
        self.step_batches.drop(DropReason.PROCESS_KILLED, gaps[0])
        self.rows.drop(DropReason.PROCESS_KILLED, gaps[1])
        return gaps[0], gaps[1]

    def close(self) -> None:
        """Let go of the file. The counts are not to be used any more."""
        if self._mapping is not None:
            self.step_batches.release()
            self.rows.release()
            with suppress(BufferError):
                self._mapping.close()


class LedgerFile:
    """A ledger's file, locked for as long as it is open. ``path`` None: memory, gone with the process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1

    @property
    def where(self) -> str:
        """For people: the file's name, or "memory"."""
        return "memory" if self._path is None else self._path.name

    def open(self) -> int:
        """Return a descriptor of the file, made or brought up to date. Raises ConfigError if it cannot be used."""
        try:
            self._fd = self._opened()
        except OSError as error:
            raise ConfigError([f"data.folder: the ledger cannot be used: {error.strerror}"]) from None
        return self._fd

    def _opened(self) -> int:
        size = _HEADER + 8 * len(_NAMES)
        if self._path is None:
            fd = os.memfd_create("stethoscope-ledger", os.MFD_CLOEXEC)
            _write(fd, {}, size)
            return fd
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise ConfigError([f"data.folder: another sidecar keeps its ledger in {self._path}"]) from None
        names, old = _read(fd)
        if names != _NAMES:
            _write(fd, old, size)
        return fd

    def counts(self) -> tuple[LedgerCounts, LedgerCounts]:
        """Step batches and rows as they are now, whatever the writer is doing. The file must be open."""
        size = 8 * len(_NAMES)
        newer = os.pread(self._fd, size, _HEADER)
        for _ in range(
            _LOOKS
        ):  # a batch that came between two looks was never in flight together with those of the first
            data, newer = newer, os.pread(self._fd, size, _HEADER)
            if data == newer:
                break
        sides = []
        for side in range(len(_UNITS)):
            start, stop = 8 * side * len(_WORDS), 8 * (side + 1) * len(_WORDS)
            words = memoryview(data[start:stop]).cast("q").tolist()
            words[0] = int.from_bytes(
                newer[start : start + 8], "little"
            )  # counted before its outcome, so read after it
            sides.append(counts_of(words))
        return sides[0], sides[1]

    def close(self) -> None:
        """Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def map_ledger(fd: int) -> Ledger:
    """The ledger in an open file, shared with whoever else maps it. Only one may write."""
    return Ledger(mmap.mmap(fd, 0))


def _read(fd: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names and counts of a file; nothing of one that is empty, torn or none of ours."""
    with suppress(ValueError, TypeError, KeyError):
        header = json.loads(os.pread(fd, _HEADER, 0).rstrip(b"\0"))
        names = tuple(str(name) for name in header["words"])
        data = os.pread(fd, 8 * len(names), _HEADER)
        if len(data) == 8 * len(names):
            return names, dict(zip(names, memoryview(data).cast("q").tolist(), strict=True))
    return (), {}


def _write(fd: int, counts: Mapping[str, int], size: int) -> None:
    """Room first, all of it: a full disk must fail here, not as a fault of the mapping later."""
    os.posix_fallocate(fd, 0, size)
    os.ftruncate(fd, size)
    words = memoryview(bytearray(8 * len(_NAMES))).cast("q")
    for i, name in enumerate(_NAMES):
        words[i] = counts.get(name, 0)
    os.pwrite(fd, bytes(_HEADER), 0)  # names over words that are not theirs would be read wrong for good
    os.pwrite(fd, words.cast("B"), _HEADER)
    os.pwrite(fd, json.dumps({"words": _NAMES}).encode().ljust(_HEADER, b"\0"), 0)
