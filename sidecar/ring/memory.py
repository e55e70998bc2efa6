"""A ring of shared memory between one producer and one consumer: few hot slots for messages, as many for replies, two eventfds.

The mapping is a sealed memfd: nobody can shrink it under the other. Layout: a page of header words, the message slots, the
reply slots, all page-aligned. Every slot begins with 64 bytes of words; its generation word is 0 while it is being written
and the message's number after that, and the consumer checks it before and after it uses the bytes. Neither side believes a
number of the other's without checking it.

The order of stores is what makes a slot whole before its number is seen, and Python has no fence: rings are for processors
that keep that order (``ORDERED``). Others use gRPC.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

ORDERED = platform.machine() in ("x86_64", "AMD64")
PAGE = 4096
ALIGN = 64
SLOT_WORDS = 64  # bytes before a slot's payload
MOST_SLOTS = 64
_MAGIC = 0x3152544554535F31
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # madvise(2), Linux 5.14: the module mmap does not name them


class RingBrokenError(Exception):
    """The other side does not keep to the protocol, or is gone: leave the ring and do not read from it again."""


class Kind(IntEnum):
    """What a message is. The ring carries it and gives it no meaning."""

    STREAM = 1  # a StreamRequest
    OBSERVE = 2  # an ObserveRequest
    CLOSED = 3  # the session on this ring ended; empty


class Head(IntEnum):
    MAGIC = 0
    SLOTS = 1
    SLOT_BYTES = 2
    REPLY_BYTES = 3
    POSTED = 4  # number of the newest message; the producer's
    ANSWERED = 5  # number of the newest message answered; the consumer's
    CLOSED = 6  # not 0 once either side has left


class Word(IntEnum):
    GENERATION = 0
    POSTED_NS = 1  # CLOCK_MONOTONIC, which all processes of a machine share
    KIND = 2
    LENGTH = 3  # of the message
    USED = 4  # of message and tensors together


def aligned(size: int, to: int = ALIGN) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a ring. Slots are as large as the largest message; only pages that were ever written take memory."""

    slots: int = 2
    slot_bytes: int = 16 << 20
    reply_bytes: int = 1 << 20

    @property
    def slot_stride(self) -> int:
        return aligned(SLOT_WORDS + self.slot_bytes, PAGE)

    @property
    def reply_stride(self) -> int:
        return aligned(SLOT_WORDS + self.reply_bytes, PAGE)

    @property
    def total(self) -> int:
        return PAGE + self.slots * (self.slot_stride + self.reply_stride)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The three descriptors that make a ring, in the order in which they are passed."""

    memory: int
    posted: int  # eventfd: the producer has posted
    answered: int  # eventfd: the consumer has answered

    def as_list(self) -> list[int]:
        return [self.memory, self.posted, self.answered]


class Ring:
    """One mapping of a ring and its descriptors, which it owns. ``close`` twice is fine."""

    def __init__(self, descriptors: Descriptors, shape: Shape) -> None:
        self.descriptors = descriptors
        self.shape = shape
        self._map = mmap.mmap(descriptors.memory, shape.total)
        self.bytes = memoryview(self._map)
        self.head = self.bytes[:PAGE].cast("q")
        self._closed = False

    @classmethod
    def create(cls, shape: Shape) -> Ring:
        """A new ring of zeros, sealed. Raises OSError if the system has no room."""
        memory = os.memfd_create("stethoscope-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, shape.total)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        made = cls(Descriptors(memory, os.eventfd(0, flags), os.eventfd(0, flags)), shape)
        for word, value in (
            (Head.SLOTS, shape.slots),
            (Head.SLOT_BYTES, shape.slot_bytes),
            (Head.REPLY_BYTES, shape.reply_bytes),
            (Head.MAGIC, _MAGIC),
        ):
            made.head[word] = value
        return made

    @classmethod
    def attach(cls, descriptors: Descriptors) -> Ring:
        """Map a ring that another process made. Raises RingBrokenError if it is none, or could shrink under us."""
        try:
            seals = fcntl.fcntl(descriptors.memory, fcntl.F_GET_SEALS)
            size = os.fstat(descriptors.memory).st_size
            if seals & _SEALS != _SEALS or size < PAGE:
                raise RingBrokenError("not a sealed ring")
            with mmap.mmap(descriptors.memory, PAGE, prot=mmap.PROT_READ) as page:
                words = memoryview(page).cast("q")
                magic, *numbers = words[: Head.REPLY_BYTES + 1].tolist()
                words.release()
            shape = Shape(*numbers)
            sound = magic == _MAGIC and 0 < shape.slots <= MOST_SLOTS and min(numbers) > 0 and shape.total == size
            if not sound:
                raise RingBrokenError("not a ring of this version")
            return cls(descriptors, shape)
        except OSError as error:
            raise RingBrokenError("cannot map the ring") from error

    def prefault(self, hot_bytes: int, *, write: bool = True) -> None:
        """Map the first ``hot_bytes`` of every slot now: a first touch costs forty times a hot one."""
        how = _POPULATE_WRITE if write else _POPULATE_READ
        hot = aligned(min(hot_bytes + SLOT_WORDS, self.shape.slot_stride), PAGE)
        for slot in range(self.shape.slots):
            for start, size in ((self._slot(slot), hot), (self._reply(slot), PAGE)):
                with suppress(OSError):  # an older kernel: the pages come at their first use
                    self._map.madvise(how, start, size)

    def slot(self, number: int) -> memoryview:
        """Words and payload of message ``number`` (from 1)."""
        start = self._slot((number - 1) % self.shape.slots)
        return self.bytes[start : start + SLOT_WORDS + self.shape.slot_bytes]

    def reply(self, number: int) -> memoryview:
        start = self._reply((number - 1) % self.shape.slots)
        return self.bytes[start : start + SLOT_WORDS + self.shape.reply_bytes]

    def _slot(self, index: int) -> int:
        return PAGE + index * self.shape.slot_stride

    def _reply(self, index: int) -> int:
        return PAGE + self.shape.slots * self.shape.slot_stride + index * self.shape.reply_stride

    @property
    def left(self) -> bool:
        """True once either side has left."""
        return self._closed or self.head[Head.CLOSED] != 0

    def leave(self) -> None:
        """Tell the other side, whatever it waits for."""
        if not self._closed:
            self.head[Head.CLOSED] = 1
            for end in (self.descriptors.posted, self.descriptors.answered):
                with suppress(BlockingIOError):
                    os.eventfd_write(end, 1)

    def close(self) -> None:
        """Leave and give the descriptors back; the mapping goes with the last view of it."""
        self.leave()
        self.forget()

    def forget(self) -> None:
        """Give the descriptors back and say nothing: others go on with theirs. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        for descriptor in self.descriptors.as_list():
            os.close(descriptor)
        self.head.release()
        with suppress(BufferError):
            self.bytes.release()
            self._map.close()
