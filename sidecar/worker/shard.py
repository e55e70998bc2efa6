"""``python -m sidecar.worker.shard ORDERS MEMORY POSTED ANSWERED``: multiplies what its worker puts into the ring, no more.

The numbers are descriptors that it inherited. It ends with its worker, and on the first surprise: the worker then does
without it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from sidecar.clock import SystemClock
from sidecar.ingest.bugs import bug_teller
from sidecar.log import Log
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan
from sidecar.ring import Consumer, Descriptors, Ring
from sidecar.snapshot import KernelChoice
from sidecar.types import TapPoint
from sidecar.worker import orders, planwire, shardwire

EX_SOFTWARE = 70


class Shard:
    """Owned by the process's one thread."""

    def __init__(self, end: socket.socket, ring: Ring) -> None:
        self._end = end
        self._consumer = Consumer(ring)
        self._kernels = Kernels()
        self._plan: Plan | None = None
        self._taps: tuple[TapPoint, ...] = ()

    def run(self) -> None:
        """Until the worker is gone."""
        self._kernels.start()
        poll, posted = select.poll(), self._consumer.ring.descriptors.posted
        poll.register(self._end, select.POLLIN)
        poll.register(posted, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == posted:
                    self._work()
                elif not self._obey():
                    return

    def _work(self) -> None:
        self._consumer.clear()
        while (taken := self._consumer.take()) is not None:
            self._consumer.answer(taken, self._readings(shardwire.get(taken.slot)))

    def _readings(self, work: shardwire.Work) -> bytes:
        """Nothing for rows of another plan: they were left over when the plan was changed, and nobody waits for them."""
        if self._plan is None or work.generation != self._plan.generation:
            return b""
        tap_plan = self._plan.taps[self._taps[work.tap]]
        with np.errstate(over="ignore", invalid="ignore"):  # rows are judged by their readings, and not here
            return self._kernels.project(tap_plan, work.values, work.dtype).tobytes()

    def _obey(self) -> bool:
        taken = orders.take(self._end)
        if taken is None:
            return False
        order, descriptors = taken
        if order["what"] == "bind":
            self._bind(order, descriptors)
        orders.answer(self._end, order)
        return True

    def _bind(self, order: dict[str, Any], descriptors: list[int]) -> None:
        (memory,) = descriptors
        whole = planwire.from_memory(memory)
        os.close(memory)
        self._taps = tuple(map(TapPoint.parse, order["taps"]))
        plan = replace(whole, taps={where: whole.taps[where] for where in self._taps})  # memory for its own share only
        choices = [KernelChoice(TapPoint.parse(where), *choice) for where, *choice in order["choices"]]
        self._kernels.bind_like(plan, choices)
        self._plan = plan
        gc.collect()
        gc.freeze()


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker tells us when to end
        signal.signal(number, signal.SIG_IGN)
    end, *ring = map(int, sys.argv[1:])
    gc.disable()
    try:
        Shard(socket.socket(fileno=end), Ring.attach(Descriptors(*ring))).run()
        status = 0
    except Exception as bug:  # noqa: BLE001 - logged; the worker reads by itself, and logs that too
        bug_teller(Log(SystemClock()))(bug)
        status = EX_SOFTWARE
    os._exit(status)  # views of shared memory are the system's to clean up, not the interpreter's


if __name__ == "__main__":
    raise SystemExit(main())
