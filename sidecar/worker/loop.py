"""The hot path: one thread that takes messages from rings, judges, replies, and only then accounts for them."""

from __future__ import annotations

import gc
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar import published
from sidecar.errors import EngineIdInUseError, OtherModelError, TooManyEnginesError
from sidecar.ingest.refusal import Refusal
from sidecar.live import remembered, tickwire
from sidecar.log import Level
from sidecar.ring import Consumer, Descriptors, Ring, RingBrokenError, Taken
from sidecar.snapshot import Transport
from sidecar.worker import orders, planwire
from sidecar.worker.board import Board
from sidecar.worker.events import Teller
from sidecar.worker.session import Peer, Session

REFUSED = (EngineIdInUseError, OtherModelError, TooManyEnginesError)
ANSWER, END = b"\0", b"\1"  # first byte of a relay's reply: a message to pass on, or the status that ends the call
_IDLE_S = 0.25  # how long nothing may happen before time itself is looked at
_COLLECT_S = 30.0


@dataclass(slots=True, eq=False)
class Channel:
    """One ring and the session on it."""

    name: str
    transport: Transport
    consumer: Consumer
    session: Session
    waiting: bool = False  # among those that may have a message


class Worker:
    """Owned by the thread that calls ``run``. ``process`` is True if that thread has a process of its own."""

    def __init__(self, peer: Peer, board: Board, end: socket.socket, teller: Teller, *, process: bool) -> None:
        self._pipeline = peer.pipeline
        self._peer = peer
        self._board = board
        self._end = end
        self._teller = teller
        self._log = peer.log
        self._process = process
        self._poll = select.poll()
        self._channels: dict[int, Channel] = {}  # by the descriptor that wakes us
        self._names: dict[str, Channel] = {}
        self._waiting: deque[Channel] = deque()
        self._running = True
        self._collected_s = peer.clock.monotonic_s()
        self._orders: dict[str, Callable[[dict[str, Any], list[int]], dict[str, Any]]] = {
            "admit": self._admit,
            "bind": self._bind,
            "introduce": self._introduce,
            "open": self._open,
            "close": self._close,
            "publish": self._publish,
            "ticks": self._ticks,
            "remember": self._remember,
            "end": self._end_all,
        }

    def run(self) -> None:
        """Until told to end, or until nobody is there to tell. One message of each peer in turn."""
        self._poll.register(self._end, select.POLLIN)
        while self._running:
            events = self._poll.poll(0 if self._waiting else _IDLE_S * 1e3)
            for descriptor, _ in events:
                channel = self._channels.get(descriptor)  # None: dropped by an order a moment ago
                if descriptor == self._end.fileno():
                    self._obey()
                elif channel is not None:
                    self._wake(channel)
            for _ in range(len(self._waiting)):
                self._serve(self._waiting.popleft())
            if not events and not self._waiting:
                self._settle()  # time passes: requests end, the ladder climbs
            if not self._waiting:
                self._collect()
        for channel in list(self._names.values()):
            self._drop(channel)
        self._pipeline.close()

    def _wake(self, channel: Channel) -> None:
        channel.consumer.clear()
        if not channel.waiting:
            channel.waiting = True
            self._waiting.append(channel)

    def _serve(self, channel: Channel) -> None:
        """One message; the channel goes to the back of the queue as long as it has any."""
        if self._names.get(channel.name) is not channel:
            return
        try:
            taken = channel.consumer.take()
            if taken is None:
                channel.waiting = False
                if channel.consumer.ring.left:
                    self._drop(channel)
                return
            self._answer(channel, taken)
        except RingBrokenError as broken:
            self._log.event(Level.WARNING, "ring_broken", why=str(broken))
            self._drop(channel)
            return
        self._waiting.append(channel)
        self._settle()

    def _answer(self, channel: Channel, taken: Taken) -> None:
        relayed = channel.transport is Transport.GRPC
        try:
            reply = channel.session.handle(taken)
            if not channel.consumer.intact(taken):
                raise RingBrokenError("a slot was written to while it was read")
        except RingBrokenError:
            raise
        except Exception as stop:  # noqa: BLE001 - a bug is logged; it costs its own stream and nobody else's
            refusal = stop if isinstance(stop, Refusal) else self._peer.bug(stop)
            if not relayed:
                raise RingBrokenError(f"{refusal.text} at {refusal.field}") from None
            channel.consumer.answer(taken, END + refusal.status().SerializeToString())
            return
        channel.consumer.answer(taken, (ANSWER if relayed else b"") + reply)

    def _settle(self) -> None:
        try:
            self._pipeline.settle()
        except Exception as bug:  # noqa: BLE001 - logged; the batch has its outcome and its answer stands
            self._peer.bug(bug)
        self._teller.sampling(self._pipeline.effects.sampling_factor)

    def _collect(self) -> None:
        """Garbage, now and then, where nobody is kept waiting."""
        now = self._peer.clock.monotonic_s()
        if self._process and now - self._collected_s > _COLLECT_S:
            self._collected_s = now
            gc.collect()

    def _drop(self, channel: Channel) -> None:
        ring = channel.consumer.ring
        self._poll.unregister(ring.descriptors.posted)
        del self._channels[ring.descriptors.posted]
        del self._names[channel.name]
        channel.session.end()
        ring.close()

    # orders

    def _obey(self) -> None:
        taken = orders.take(self._end)
        if taken is None:  # the control process is gone, and with it everything that we are for
            self._running = False
            return
        order, descriptors = taken
        try:
            answer = self._orders[order["what"]](order, descriptors)
        except Exception as bug:  # noqa: BLE001 - logged; whoever gave the order is told
            self._peer.bug(bug)
            answer = {"failed": type(bug).__name__}
        orders.answer(self._end, order, **answer)

    def _admit(self, order: dict[str, Any], _: list[int]) -> dict[str, Any]:
        try:
            self._pipeline.admit(planwire.model(order["model"]), order["engine"])
        except REFUSED as refused:
            return {"refused": type(refused).__name__}
        return {}

    def _bind(self, _: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        (memory,) = descriptors
        try:
            plan = planwire.from_memory(memory)
        finally:
            os.close(memory)
        self._pipeline.bind(plan)
        self._log_kernels()
        self._log_unknown()
        self._log_resumed()
        if self._process:
            gc.collect()
            gc.freeze()
        return {}

    def _log_kernels(self) -> None:
        chosen = Counter(f"{one.kernel} from {one.rows} rows" for one in self._pipeline.kernels.choices())
        self._log.event(Level.INFO, "kernels", chosen=", ".join(sorted(chosen)))
        for name, why in self._pipeline.kernels.refused.items():
            self._log.event(Level.INFO, "kernel_not_used", kernel=name, why=why)

    def _log_resumed(self) -> None:
        resumed, self._pipeline.detectors_resumed = self._pipeline.detectors_resumed, None
        if resumed is not None:
            self._log.event(Level.INFO, "detectors_resumed", detectors=resumed)

    def _log_unknown(self) -> None:
        """A misspelt name would leave its signal at the default without a word."""
        if unknown := self._pipeline.unknown_signals:
            self._log.event(Level.WARNING, "verdicts_of_unknown_signals", signals=", ".join(unknown))

    def _introduce(self, order: dict[str, Any], _: list[int]) -> dict[str, Any]:
        self._pipeline.introduce(planwire.report(order["report"]))
        return {}

    def _open(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        try:
            ring = Ring.attach(Descriptors(*descriptors))
        except RingBrokenError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        ring.prefault(order["hot_bytes"], write=False)
        channel = Channel(
            order["name"],
            Transport(order["transport"]),
            Consumer(ring),
            Session(self._peer, ring.shape.reply_bytes - 1),
        )
        self._names[channel.name] = self._channels[ring.descriptors.posted] = channel
        self._poll.register(ring.descriptors.posted, select.POLLIN)
        return {}

    def _close(self, order: dict[str, Any], _: list[int]) -> dict[str, Any]:
        """What was posted before is still served."""
        channel = self._names.get(order["name"])
        if channel is not None:
            self._drain(channel)
        if order["name"] in self._names:
            self._drop(self._names[order["name"]])
        return {}

    def _drain(self, channel: Channel) -> None:
        """What lies in its slots now; one who goes on posting must not keep all others waiting."""
        for _ in range(channel.consumer.ring.shape.slots):
            if self._names.get(channel.name) is channel:
                self._serve(channel)
            if self._waiting and self._waiting[-1] is channel:
                self._waiting.pop()

    def _publish(self, _order: dict[str, Any], _: list[int]) -> dict[str, Any]:
        self._settle()
        facts = published.facts(self._pipeline)
        facts["streams"] = [
            (one.session.engine, one.transport) for one in self._names.values() if one.session.engine is not None
        ]
        facts["log_lines_suppressed"] = self._log.suppressed if self._process else 0
        facts["ended_lost"] = self._teller.lost
        self._board.write(facts, published.arrays(self._pipeline))
        return {}

    def _ticks(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """Ticks of circuits that closed after a number, and rows of canaries, into the memory that came with the order."""
        (memory,) = descriptors
        try:
            self._settle()
            if order["last"] and self._pipeline.monitor is not None:
                self._pipeline.monitor.close()
            pipeline = self._pipeline
            ticks, canaries = pipeline.ticks.since(order["after"]), pipeline.canaries.take()
            known = pipeline.monitor.remember() if ticks and pipeline.monitor is not None else None
            generation = 0 if pipeline.plan is None else pipeline.plan.generation
            state = b"" if known is None else known.to_bytes()
            return {"bytes": tickwire.write(memory, ticks, canaries, generation, state)}
        finally:
            os.close(memory)

    def _remember(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """What the worker before this one knew of circuits. whole: the archive has what a replay of it rests on."""
        (memory,) = descriptors
        try:
            known = remembered.from_bytes(os.pread(memory, order["bytes"], 0))
        finally:
            os.close(memory)
        self._pipeline.remembered = known if order["whole"] else known.without_history()
        return {}

    def _end_all(self, order: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        for channel in list(self._names.values()):
            self._drain(channel)
        self._pipeline.end_all()
        self._running = False
        return self._publish(order, descriptors)
