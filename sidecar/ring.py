"""A ring of shared memory between one producer and one consumer: few hot slots for messages, as many for replies, two eventfds.

The mapping is a sealed memfd: nobody can shrink it under the other. Layout: a page of header words, the message slots, the
reply slots, all page-aligned. Every slot begins with 64 bytes of words; its generation word is 0 while it is being written
and the message's number after that, and the consumer checks it before and after it uses the bytes. Neither side believes a
number of the other's without checking it.

x86 keeps the order of stores; elsewhere the eventfd's system call between writing and reading is the barrier.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

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


class _Head(IntEnum):
    MAGIC = 0
    SLOTS = 1
    SLOT_BYTES = 2
    REPLY_BYTES = 3
    POSTED = 4  # number of the newest message; the producer's
    ANSWERED = 5  # number of the newest message answered; the consumer's
    CLOSED = 6  # not 0 once either side has left


class _Word(IntEnum):
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
            (_Head.SLOTS, shape.slots),
            (_Head.SLOT_BYTES, shape.slot_bytes),
            (_Head.REPLY_BYTES, shape.reply_bytes),
            (_Head.MAGIC, _MAGIC),
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
                magic, *numbers = words[: _Head.REPLY_BYTES + 1].tolist()
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
        return self._closed or self.head[_Head.CLOSED] != 0

    def leave(self) -> None:
        """Tell the other side, whatever it waits for."""
        if not self._closed:
            self.head[_Head.CLOSED] = 1
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


class Producer:
    """Fills slots, and reads the replies in the order of the messages. One thread at a time for each of the two."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._posted = 0
        self._read = 0
        self._poll = select.poll()
        self._poll.register(ring.descriptors.answered, select.POLLIN)

    @property
    def outstanding(self) -> int:
        return self._posted - self._read

    def reserve(self) -> memoryview | None:
        """The payload of the next slot, to be filled in place; None while every slot is taken. Raises RingBrokenError."""
        if self._ring.left:
            raise RingBrokenError("the other side has left")
        if self.outstanding >= self._ring.shape.slots:
            return None
        slot = self._ring.slot(self._posted + 1)
        slot[:8].cast("q")[0] = 0
        return slot[SLOT_WORDS:]

    def post(self, length: int, used: int = 0, kind: Kind = Kind.STREAM) -> None:
        """Hand over the slot reserved last: ``length`` bytes of message, ``used`` bytes with the tensors behind it."""
        number = self._posted + 1
        words = self._ring.slot(number)[:SLOT_WORDS].cast("q")
        words[_Word.KIND], words[_Word.LENGTH], words[_Word.USED] = kind, length, max(length, used)
        words[_Word.POSTED_NS] = time.monotonic_ns()
        words[_Word.GENERATION] = number
        self._posted = number
        self._ring.head[_Head.POSTED] = number
        os.eventfd_write(self._ring.descriptors.posted, 1)

    def reply(self, timeout_s: float | None = 0.0) -> bytes | None:
        """The next reply, copied; None if there is none in time. None for timeout_s waits for ever.

        Raises RingBrokenError if the other side has left without answering.
        """
        if not self._wait(timeout_s):
            return None
        number = self._read + 1
        reply = self._ring.reply(number)
        generation, length = reply[:16].cast("q").tolist()
        if generation != number or not 0 <= length <= self._ring.shape.reply_bytes:
            raise RingBrokenError("a reply of another message")
        data = bytes(reply[SLOT_WORDS : SLOT_WORDS + length])
        self._read = number
        return data

    def unanswered(self) -> Iterator[tuple[memoryview, memoryview]]:
        """Message and payload of every slot whose reply was not read, oldest first: what can be saved from a ring that broke.

        What is not as it was posted is left out.
        """
        for number in range(self._read + 1, self._posted + 1):
            slot = self._ring.slot(number)
            generation, _, _, length, used = slot[:40].cast("q").tolist()
            if generation == number and 0 <= length <= used <= self._ring.shape.slot_bytes:
                payload = slot[SLOT_WORDS : SLOT_WORDS + used]
                yield payload[:length], payload

    def _wait(self, timeout_s: float | None) -> bool:
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._answered():
            if self._ring.left:
                if self._answered():  # it answered, and then left
                    return True
                raise RingBrokenError("the other side has left")
            left_s = None if ends_s is None else ends_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self._sleep(left_s)
        return True

    def _answered(self) -> bool:
        return self.outstanding > 0 and self._ring.head[_Head.ANSWERED] > self._read

    def _sleep(self, seconds: float | None) -> None:
        self._poll.poll(None if seconds is None else seconds * 1e3)
        with suppress(BlockingIOError):
            os.eventfd_read(self._ring.descriptors.answered)


@dataclass(frozen=True, slots=True)
class Taken:
    """One message in its slot. The views are of shared memory that the other side could still write to."""

    number: int
    kind: int
    message: memoryview
    slot: memoryview  # message and tensors
    posted_s: float


class Consumer:
    """Takes messages in order and answers each before the next."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._taken = 0

    @property
    def ring(self) -> Ring:
        return self._ring

    def clear(self) -> None:
        """The eventfd has woken us: make it quiet again. Comes before ``take``, so that nothing posted later is missed."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._ring.descriptors.posted)

    def take(self) -> Taken | None:
        """The next message; None if none is there. Raises RingBrokenError if its words cannot be true."""
        shape, posted = self._ring.shape, self._ring.head[_Head.POSTED]
        if posted == self._taken:
            return None
        number = self._taken + 1
        slot = self._ring.slot(number)
        generation, posted_ns, kind, length, used = slot[:40].cast("q").tolist()
        in_step = 0 < posted - self._taken <= shape.slots and generation == number
        if not in_step or not 0 <= length <= used <= shape.slot_bytes:
            raise RingBrokenError("a slot that does not say what it holds")
        self._taken = number
        payload = slot[SLOT_WORDS : SLOT_WORDS + used]
        return Taken(number, kind, payload[:length], payload, posted_ns / 1e9)

    def intact(self, taken: Taken) -> bool:
        """Whether the slot still holds the message: asked after its bytes were used."""
        return bool(self._ring.slot(taken.number)[:8].cast("q")[0] == taken.number)

    def answer(self, taken: Taken, reply: bytes) -> None:
        """Reply to the message taken last; its slot is the producer's again. Raises ValueError for a reply that is too long."""
        if len(reply) > self._ring.shape.reply_bytes:
            raise ValueError("a reply longer than its slot")
        place = self._ring.reply(taken.number)
        place[SLOT_WORDS : SLOT_WORDS + len(reply)] = reply
        words = place[:16].cast("q")
        words[1] = len(reply)
        words[0] = taken.number
        self._ring.head[_Head.ANSWERED] = taken.number
        with suppress(BlockingIOError):
            os.eventfd_write(self._ring.descriptors.answered, 1)
