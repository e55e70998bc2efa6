"""The worker's hold on one shard: start it, put rows into its ring, wait for readings until there is no more time."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sidecar.clock import Clock
from sidecar.errors import OrderFailedError, WorkerBusyError, WorkerLostError
from sidecar.reading.plan import TapPlan
from sidecar.ring import Producer, Ring, RingBrokenError, Shape
from sidecar.snapshot import KernelChoice
from sidecar.types import FloatArray, TapPoint
from sidecar.worker import orders, shardwire
from sidecar.worker.orders import Orders
from sidecar.worker.spawn import spawn

# Enough for the tap points of a step, and few enough to stay in the caches: what finds no slot is multiplied by the worker.
_SHAPE = Shape(slots=8, slot_bytes=16 << 20, reply_bytes=4 << 20)
_HOT_BYTES = 1 << 20
_START_S = 60.0  # a cold disk
_BIND_S = 5.0  # a copy of its directions for each kernel; batches wait meanwhile


class ShardLostError(Exception):
    """The shard is dead, or does not do what it must: do without it."""


class ShardHandle:
    """Owned by one thread. ``stop`` twice is fine. Where nothing else is said, what fails raises ShardLostError."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked = self._answered = 0  # numbers of the newest work, and of the newest reply read
        self._behind = False
        self._poll = select.poll()

    def start(self) -> None:
        """Returns at once; ``wait_ready`` tells when it runs. Raises OSError."""
        self._ring = Ring.create(_SHAPE)
        self._ring.prefault(_HOT_BYTES)
        self._producer = Producer(self._ring)
        ours, theirs = orders.pair()
        self._process = spawn(f"{__package__}.shard", [theirs.fileno(), *self._ring.descriptors.as_list()])
        theirs.close()
        self._orders = Orders(ours)
        self._poll.register(self._ring.descriptors.answered, select.POLLIN)
        self._poll.register(ours, 0)  # a hang-up is told without being asked for

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        self._give("ready", timeout_s=_START_S)

    def bind(self, memory: int, taps: Sequence[TapPoint], choices: Sequence[KernelChoice]) -> None:
        """Put a plan in force there, with the kernels that were chosen here. Whatever was asked before counts for nothing."""
        told = [(one.tap_point.name, one.rows, one.kernel, one.seconds) for one in choices]
        self._give("bind", [memory], taps=[where.name for where in taps], choices=told, timeout_s=_BIND_S)

    def _give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        try:
            self._orders.give(what, descriptors, **fields)
        except WorkerBusyError:
            raise ShardLostError("no answer in time") from None
        except (WorkerLostError, OrderFailedError) as error:
            raise ShardLostError("it ended") from error

    def catch_up(self) -> None:
        """A step begins: replies that nobody waits for any more are thrown away.

        A shard that still owes one is not asked: a frozen one costs the time of a single step.
        """
        while self._answered < self._asked and self._reply() is not None:
            self._answered += 1
        self._behind = self._answered < self._asked
        if self._behind and self._gone(0.0):
            raise ShardLostError("it ended")

    def ask(self, work: shardwire.Work, tap_plan: TapPlan) -> int | None:
        """The number of the work; None if there is no room for it, or no hope."""
        readings_bytes = 4 * len(work.values) * len(tap_plan.columns)
        fits = shardwire.size(work.values) <= _SHAPE.slot_bytes and readings_bytes <= _SHAPE.reply_bytes
        if self._behind or not fits:
            return None
        slot = self._producer.reserve()
        if slot is None:
            return None
        shardwire.put(slot, work)
        self._producer.post(shardwire.HEADER, shardwire.size(work.values))
        self._asked += 1
        return self._asked

    def answer(self, number: int, until_s: float, shape: tuple[int, int]) -> FloatArray | None:
        """The readings [R, K] of that work; None if they are not there in time. What was asked before it is thrown away."""
        reply = b""
        while self._answered < number:
            found = self._wait(until_s)
            if found is None:
                return None
            self._answered, reply = self._answered + 1, found
        readings = np.frombuffer(reply, dtype=np.float32)
        if readings.size != math.prod(shape):
            raise ShardLostError("it has another plan")
        return readings.reshape(shape)

    def _wait(self, until_s: float) -> bytes | None:
        gone = False
        while (reply := self._reply()) is None:
            left_s = until_s - self._clock.monotonic_s()
            if gone:
                raise ShardLostError("it ended")
            if left_s <= 0:
                return None
            gone = self._gone(left_s)
        return reply

    def _reply(self) -> bytes | None:
        try:
            return self._producer.reply()
        except RingBrokenError as broken:
            raise ShardLostError(str(broken)) from broken

    def _gone(self, seconds: float) -> bool:
        """Sleep until something happens; whether that was the shard's end."""
        events = self._poll.poll(1e3 * seconds)
        with suppress(BlockingIOError):
            os.eventfd_read(self._ring.descriptors.answered)
        return any(event & select.POLLHUP for _, event in events)

    def stop(self) -> None:
        """It holds nothing that could be lost, so it is killed."""
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._ring.close()
