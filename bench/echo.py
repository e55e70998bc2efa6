"""The ring by itself beside a memory copy: what the transport costs when nobody does anything with the bytes."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable

import numpy as np

from bench.row import Row, ratio
from bench.serving import child
from sidecar.ring import Consumer, Descriptors, Producer, Ring, Shape

_TENSORS, _TENSOR = 4, 512 << 10
_ANSWER = b"\0" * 64


def serve(*descriptors: str) -> None:
    """``python -m bench.echo MEMORY POSTED ANSWERED``: the consumer, which looks at no byte of the messages."""
    ring = Ring.attach(Descriptors(*map(int, descriptors)))
    ring.prefault(_TENSORS * _TENSOR, write=False)
    consumer, poll = Consumer(ring), select.poll()
    poll.register(ring.descriptors.posted, select.POLLIN)
    while not ring.left:
        poll.poll()
        consumer.clear()
        while (taken := consumer.take()) is not None:
            consumer.answer(taken, _ANSWER)


def measure(*, short: bool = False) -> list[Row]:
    rounds, count = (12, 40) if short else (40, 100)
    ring = Ring.create(Shape(slots=2, slot_bytes=2 * _TENSORS * _TENSOR))
    ring.prefault(_TENSORS * _TENSOR)
    with child("-m", "bench.echo", *map(str, ring.descriptors.as_list()), keep=ring.descriptors.as_list()):
        try:
            return _rows(Producer(ring), rounds, count)
        finally:
            ring.close()


def _rows(producer: Producer, rounds: int, count: int) -> list[Row]:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 255, _TENSORS * _TENSOR, dtype=np.uint8)
    target = np.zeros_like(whole)
    tensors = [memoryview(one) for one in np.split(whole, _TENSORS)]  # type: ignore[arg-type]  # arrays are buffers

    def copied() -> None:
        """A message in one piece is made, and then copied into the slot."""
        _echo(producer, [memoryview(b"".join(tensors))])

    times: dict[str, list[float]] = {"memcpy": [], "copied": [], "placed": []}
    turns: dict[str, Callable[[], None]] = {
        "memcpy": lambda: np.copyto(target, whole),
        "copied": copied,
        "placed": lambda: _echo(producer, tensors),
    }
    for number in range(rounds + 1):
        for name, turn in turns.items():
            taken_s = _p50_s(turn, count)
            if number:
                times[name].append(taken_s)
    note = "2 MiB, round trip, p50; the copy is of one warm buffer into another"
    return [
        ratio("shared-memory echo / warm memcpy", times["copied"], times["memcpy"], note).at_most(3),
        ratio("shared-memory echo written in place / warm memcpy", times["placed"], times["memcpy"], note).at_most(1.5),
    ]


def _echo(producer: Producer, pieces: list[memoryview]) -> None:
    slot = producer.reserve()
    assert slot is not None  # one message at a time
    at = 0
    for piece in pieces:
        slot[at : at + len(piece)] = piece
        at += len(piece)
    producer.post(at)
    if producer.reply(10.0) is None:
        raise TimeoutError("no echo")


def _p50_s(turn: Callable[[], None], count: int) -> float:
    times = []
    for _ in range(count):
        start_s = time.perf_counter()
        turn()
        times.append(time.perf_counter() - start_s)
    return float(np.median(times))


if __name__ == "__main__":
    serve(*sys.argv[1:])
