"""The side that serves: takes messages in order, and believes nothing that it has not checked."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from sidecar.ring.memory import SLOT_WORDS, Head, Ring, RingBrokenError


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
        shape, posted = self._ring.shape, self._ring.head[Head.POSTED]
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
        self._ring.head[Head.ANSWERED] = taken.number
        with suppress(BlockingIOError):
            os.eventfd_write(self._ring.descriptors.answered, 1)
