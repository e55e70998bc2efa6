"""The tap's end of a ring: slots are filled on the sender's thread, replies are read on a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from traceback import clear_frames

from google.protobuf.message import DecodeError

from sidecar.ring import Producer, Ring, RingBrokenError
from sidecar.tap.batch import ENVELOPE_BYTES, MESSAGE_BYTES, BatchMessage, PlainMessage, inlined
from sidecar.tap.books import Books

log = logging.getLogger("stethoscope.tap")


class RingPost:
    """Owns the ring. ``put``, ``rescue`` and ``close`` are the sender's; ``room`` and ``idle`` may be asked by anybody.

    take: called with every reply that says something. changed: called after every reply, and once when the ring has ended.
    Both are called on the thread that reads the replies.
    """

    def __init__(self, ring: Ring, books: Books, take: Callable[[bytes], object], changed: Callable[[], None]) -> None:
        self._ring = ring
        self._producer = Producer(ring)
        self._books = books
        self._take = take
        self._changed = changed
        self._thread = threading.Thread(target=self._read, name="stethoscope-tap-ring", daemon=True)
        self.part_bytes = min(MESSAGE_BYTES, ring.shape.slot_bytes - ENVELOPE_BYTES)
        self.ended = False

    def start(self) -> None:
        self._thread.start()

    @property
    def room(self) -> bool:
        """A slot is free."""
        return self._producer.outstanding < self._ring.shape.slots

    @property
    def idle(self) -> bool:
        """Every message was answered."""
        return self._producer.outstanding == 0

    def put(self, message: BatchMessage | PlainMessage, before: Callable[[], None]) -> None:
        """Write the message into a free slot and hand it over; ``before`` is called when it is written and not yet seen.

        Raises RingBrokenError, or what stopped the message from being written: nothing was handed over then.
        """
        slot = self._producer.reserve()
        if slot is None:
            raise RingBrokenError("no slot where there was one")
        try:
            length, used = message.write(slot)
        except Exception as error:
            clear_frames(error.__traceback__)  # whoever keeps the error does not keep the ring mapped
            raise
        finally:
            slot.release()
        before()
        self._producer.post(length, used)

    def rescue(self) -> Iterator[bytes]:
        """What was handed over and not answered, in order, for another way. The ring has ended."""
        self._ring.leave()
        self._thread.join()
        for message, slot in self._producer.unanswered():
            try:
                yield inlined(message, slot)
            except DecodeError:  # the other side wrote where it must not: the batch stays without an answer
                self._books.fail()

    def close(self) -> None:
        """Leave, and give the ring back. Twice is fine."""
        self._ring.leave()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._ring.close()

    def _read(self) -> None:
        try:
            while True:
                reply = self._producer.reply(None)
                if reply:
                    self._take(reply)
                self._changed()
        except RingBrokenError:
            pass
        except Exception:
            self._books.fail()
            log.exception("tap_ring_failed")
        finally:
            self.ended = True
            self._changed()
