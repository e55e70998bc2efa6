"""The shared ring: in order, in place, and believing nothing that the other side could have written."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.ring import PAGE, SLOT_WORDS, Consumer, Descriptors, Kind, Producer, Ring, RingBrokenError, Shape

SMALL = Shape(slots=2, slot_bytes=4096, reply_bytes=256)
POSTED, GENERATION, LENGTH, USED = 4, 0, 3, 4  # words of the head, and of a slot


def attached(ring: Ring) -> Ring:
    """The same ring as another process would map it."""
    return Ring.attach(Descriptors(*(os.dup(one) for one in ring.descriptors.as_list())))


@pytest.fixture
def ends() -> Iterator[tuple[Producer, Consumer, Ring]]:
    ring = Ring.create(SMALL)
    other = attached(ring)
    yield Producer(ring), Consumer(other), ring
    ring.close()
    other.close()


def post(producer: Producer, data: bytes, used: int = 0) -> None:
    slot = producer.reserve()
    assert slot is not None
    slot[: len(data)] = data
    producer.post(len(data), used)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=200)), max_size=12), st.integers(1, 4))
def test_messages_and_replies_come_in_order_and_whole_however_they_interleave(messages, slots):
    ring = Ring.create(Shape(slots, 4096, 256))
    other = attached(ring)
    producer, consumer = Producer(ring), Consumer(other)
    waiting, replies, taken = list(messages), list[bytes](), list[bytes]()
    while len(replies) < len(messages):
        while waiting and producer.outstanding < slots:
            post(producer, waiting.pop(0)[0])
        one = consumer.take()
        assert one is not None
        taken.append(bytes(one.message))
        consumer.answer(one, messages[len(taken) - 1][1])
        while (reply := producer.reply()) is not None:
            replies.append(reply)
    assert taken == [message for message, _ in messages]
    assert replies == [reply for _, reply in messages]
    ring.close()
    other.close()


def test_a_full_ring_gives_no_slot_until_a_reply_is_read(ends):
    producer, consumer, _ = ends
    for _ in range(SMALL.slots):
        post(producer, b"m")
    assert producer.reserve() is None
    one = consumer.take()
    consumer.answer(one, b"r")
    assert producer.reserve() is None  # answered, but the reply's place is not free yet
    assert producer.reply() == b"r"
    assert producer.reserve() is not None


def test_tensors_lie_in_the_slot_beside_the_message_without_a_copy(ends):
    producer, consumer, ring = ends
    slot = producer.reserve()
    slot[:3], slot[64:68] = b"msg", struct.pack("<f", 2.5)
    producer.post(3, 68)
    one = consumer.take()
    view = np.frombuffer(one.slot[64:68], "<f4")
    assert (bytes(one.message), view[0]) == (b"msg", 2.5)
    ring.slot(1)[SLOT_WORDS + 64 : SLOT_WORDS + 68] = struct.pack("<f", 9.0)
    assert view[0] == 9.0


def test_a_slot_that_was_written_to_while_it_was_read_is_not_intact(ends):
    producer, consumer, ring = ends
    post(producer, b"one")
    one = consumer.take()
    assert consumer.intact(one)
    ring.slot(1)[:8].cast("q")[GENERATION] = 0
    assert not consumer.intact(one)


HEAD, SLOT = 0, 1
LIES = {
    "more posted than there are slots": (HEAD, POSTED, 99),
    "posted went back": (HEAD, POSTED, -5),
    "another message's slot": (SLOT, GENERATION, 7),
    "longer than it says it used": (SLOT, LENGTH, 5000),
    "used beyond the slot": (SLOT, USED, 1 << 40),
    "a negative length": (SLOT, LENGTH, -1),
}


@pytest.mark.parametrize(("where", "word", "value"), LIES.values(), ids=LIES.keys())
def test_words_that_cannot_be_true_break_the_ring(ends, where, word, value):
    producer, consumer, ring = ends
    post(producer, b"fine")
    words = ring.head if where == HEAD else ring.slot(1)[:SLOT_WORDS].cast("q")
    words[word] = value
    with pytest.raises(RingBrokenError):
        consumer.take()


@pytest.mark.parametrize(("word", "value"), [(0, 9), (1, -1), (1, 257)])
def test_a_reply_that_cannot_be_true_breaks_the_ring(ends, word, value):
    producer, consumer, ring = ends
    post(producer, b"m")
    consumer.answer(consumer.take(), b"r")
    ring.reply(1)[:16].cast("q")[word] = value
    with pytest.raises(RingBrokenError):
        producer.reply()


def test_a_reply_longer_than_its_place_is_refused_and_the_place_is_still_free(ends):
    producer, consumer, _ = ends
    post(producer, b"m")
    one = consumer.take()
    with pytest.raises(ValueError, match="longer"):
        consumer.answer(one, b"x" * 257)
    consumer.answer(one, b"x" * 256)
    assert producer.reply() == b"x" * 256


def test_memory_that_could_shrink_is_not_mapped():
    memory = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, SMALL.total)
    flags = os.EFD_NONBLOCK
    descriptors = Descriptors(memory, os.eventfd(0, flags), os.eventfd(0, flags))
    with pytest.raises(RingBrokenError, match="sealed"):
        Ring.attach(descriptors)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    with pytest.raises(RingBrokenError, match="version"):  # sealed, and full of zeros
        Ring.attach(descriptors)
    for descriptor in descriptors.as_list():
        os.close(descriptor)


def test_a_ring_cannot_be_shrunk_under_the_other_side(ends):
    _, _, ring = ends
    with pytest.raises(PermissionError):
        os.ftruncate(ring.descriptors.memory, PAGE)


def test_what_was_answered_before_the_other_side_left_is_still_read_and_then_the_ring_is_broken(ends):
    producer, consumer, _ = ends
    post(producer, b"1")
    post(producer, b"2")
    consumer.answer(consumer.take(), b"r1")
    consumer.ring.leave()
    assert producer.reply(None) == b"r1"
    with pytest.raises(RingBrokenError):
        producer.reply(None)
    with pytest.raises(RingBrokenError):
        producer.reserve()


def test_a_producer_that_waits_is_woken_by_the_reply_and_by_the_end(ends):
    producer, consumer, _ = ends
    post(producer, b"m")
    got = list[object]()

    def wait() -> None:
        got.append(producer.reply(10.0))
        try:
            post(producer, b"n")
            producer.reply(10.0)
        except RingBrokenError as broken:
            got.append(broken)

    waiter = threading.Thread(target=wait)
    waiter.start()
    consumer.answer(consumer.take(), b"r")
    consumer.ring.leave()
    waiter.join(10.0)
    assert not waiter.is_alive()
    assert got[0] == b"r"
    assert isinstance(got[1], RingBrokenError)


def test_the_kind_of_a_message_is_carried_and_its_age_is_known(ends):
    producer, consumer, _ = ends
    producer.reserve()
    producer.post(0, kind=Kind.CLOSED)
    one = consumer.take()
    assert one.kind == Kind.CLOSED
    assert one.posted_s > 0


def test_closing_twice_gives_every_descriptor_back_once():
    before = len(list(Path("/proc/self/fd").iterdir()))
    ring = Ring.create(SMALL)
    other = attached(ring)
    for one in (ring, other, ring, other):
        one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
