"""Several taps at once, each on a ring of its own, with steps that come at random moments."""

from __future__ import annotations

import itertools
import os
import select
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from bench.peers import RingPeer, check_scored
from bench.serving import Served, cpu_s
from bench.steps import REFERENCE, Message, Steps

_NAMES = itertools.count()


@dataclass(frozen=True, slots=True)
class Crowded:
    """What so many taps saw. ``busy`` is the worker's share of a core."""

    taps: int
    p50_ms: float
    p99_ms: float
    busy: float
    cpu_us: float  # of the worker, per step


def crowd(served: Served, taps: int, per_s: float, steps: int) -> Crowded:
    """``steps`` reference steps in all; every tap offers ``per_s``, at exponential distances."""
    with ExitStack() as stack:
        names = [f"crowd-{next(_NAMES)}" for _ in range(taps)]
        peers = [stack.enter_context(RingPeer(served.address, REFERENCE.columns, name)) for name in names]
        sources = [Steps(engine=name, variety=2, seed=number) for number, name in enumerate(names)]
        for peer, source in zip(peers, sources, strict=True):
            for message in source.take(2):  # both slots are warm
                check_scored(peer.step(message))
        queues = [list(reversed(source.take(-(-steps // taps)))) for source in sources]
        cpu, begun_s = cpu_s(served.worker_pid), time.perf_counter()
        waited = _Driver(peers, queues, per_s).run()
        spent_s, took_s = cpu_s(served.worker_pid) - cpu, time.perf_counter() - begun_s
    p50, p99 = (1e3 * float(np.quantile(waited, q)) for q in (0.5, 0.99))
    return Crowded(taps, p50, p99, spent_s / took_s, 1e6 * spent_s / len(waited))


class _Driver:
    """One thread for all taps. A step's wait counts from when it was due, so that waiting for a slot counts too."""

    def __init__(self, peers: list[RingPeer], queues: list[list[Message]], per_s: float) -> None:
        self._peers = peers
        self._queues = queues
        self._rng = np.random.default_rng(len(peers))
        self._pause_s = 1 / per_s
        now_s = time.perf_counter()
        self._due_s = [now_s + self._pause() for _ in peers]
        self._open_s: list[list[float]] = [[] for _ in peers]
        self._poll = select.poll()
        for peer in peers:
            self._poll.register(peer.ring.descriptors.answered, select.POLLIN)

    def run(self) -> list[float]:
        """Seconds from due to answered, of every step."""
        waited: list[float] = []
        while any(self._queues) or any(self._open_s):
            for number in range(len(self._peers)):
                waited.extend(self._answers(number))
                self._post(number)
            for descriptor, _ in self._poll.poll(self._until_due_ms()):
                os.eventfd_read(descriptor)  # quiet again, before the answers are looked at
        return waited

    def _pause(self) -> float:
        return float(self._rng.exponential(self._pause_s))

    def _answers(self, number: int) -> list[float]:
        made = []
        while (reply := self._peers[number].producer.reply(0.0)) is not None:
            check_scored(reply)
            made.append(time.perf_counter() - self._open_s[number].pop(0))
        return made

    def _post(self, number: int) -> None:
        peer, queue = self._peers[number], self._queues[number]
        while queue and self._due_s[number] <= time.perf_counter() and self._free(peer):
            peer.post(queue.pop())
            self._open_s[number].append(self._due_s[number])
            self._due_s[number] += self._pause()

    @staticmethod
    def _free(peer: RingPeer) -> bool:
        return peer.producer.outstanding < peer.ring.shape.slots

    def _until_due_ms(self) -> float:
        """Until the next step that has a slot; a full ring is woken by its answer."""
        due = [self._due_s[n] for n, peer in enumerate(self._peers) if self._queues[n] and self._free(peer)]
        return 1e3 * max(0.0, min(due) - time.perf_counter()) if due else 1e3
