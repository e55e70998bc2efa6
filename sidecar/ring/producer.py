"""The side that sends: fills slots in place, and reads the replies."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress

from sidecar.ring.memory import SLOT_WORDS, Head, Kind, Ring, RingBrokenError, Word


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
        words[Word.KIND], words[Word.LENGTH], words[Word.USED] = kind, length, max(length, used)
        words[Word.POSTED_NS] = time.monotonic_ns()
        words[Word.GENERATION] = number
        self._posted = number
        self._ring.head[Head.POSTED] = number
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
        return self.outstanding > 0 and self._ring.head[Head.ANSWERED] > self._read

    def _sleep(self, seconds: float | None) -> None:
        self._poll.poll(None if seconds is None else seconds * 1e3)
        with suppress(BlockingIOError):
            os.eventfd_read(self._ring.descriptors.answered)
