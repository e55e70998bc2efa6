"""The control process's hold on its worker: start it, give it orders, read its counts, end it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sidecar import published
from sidecar.clock import Clock
from sidecar.config import Config
from sidecar.errors import ConfigError, OrderFailedError, WorkerBusyError, WorkerLostError
from sidecar.ledger import LedgerFile
from sidecar.log import Level, Log
from sidecar.snapshot import EndedRequest, Transport
from sidecar.worker import orders
from sidecar.worker.board import Array, Board
from sidecar.worker.build import Ends, Parts, build
from sidecar.worker.events import hear
from sidecar.worker.orders import Orders
from sidecar.worker.spawn import spawn

_START_S = 60.0  # a cold disk
_ORDER_S = 3.0  # below a tap's own patience with its registration
_PATIENCE_S = {"bind": 20.0, "end": 10.0}  # a calibration on a busy machine; everything that was posted
_PUBLISH_S = 0.5  # a scrape must answer within a second, whatever the worker does


class WorkerHandle:
    """``start`` raises ConfigError; ``stop`` twice is fine. ``lost`` is called once if the worker ends by itself.

    ended: called with every request that ended; sampling: with the factor that the ladder puts on the share of requests.
    Both on a thread of this object.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        log: Log,
        ledger: LedgerFile,
        *,
        ended: Callable[[EndedRequest], None],
        sampling: Callable[[float], None],
        lost: Callable[[], None],
        parts: Parts | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._log = log
        self._ledger = ledger
        self._ended = ended
        self._sampling = sampling
        self._lost = lost
        self._parts = Parts() if parts is None else parts
        self._orders: Orders | None = None
        self._board: Board | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._reading = threading.Lock()
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of the worker's own process, if it has one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        ours, theirs = orders.pair()
        heard, told = orders.pair()
        board = Board.create(published.array_bytes(self._config))
        ledger = self._ledger.open()
        self._orders, self._board = Orders(ours), Board(board)
        ends = Ends(theirs, told, board, ledger)
        if self._config.worker.process:
            self._start_process(ends)
        else:
            self._start_thread(ends)
        os.close(board)
        self._run("worker-events", lambda: hear(heard, self._ended, self._sampling))
        try:
            self._orders.give("publish", timeout_s=_START_S)
        except (WorkerLostError, WorkerBusyError):
            self.stop()
            raise ConfigError(["worker: it did not start; its own lines say why"]) from None

    def _start_process(self, ends: Ends) -> None:
        descriptors = (ends.orders.fileno(), ends.events.fileno(), ends.board, ends.ledger)
        self._process = spawn("sidecar.worker", descriptors, self._config.model_dump_json().encode())
        ends.orders.close()
        ends.events.close()
        self._run("worker-watch", self._watch)

    def _start_thread(self, ends: Ends) -> None:
        board = Ends(ends.orders, ends.events, os.dup(ends.board), ends.ledger)
        worker = build(self._config, self._clock, self._log, board, self._parts, process=False)

        def run() -> None:
            try:
                worker.run()
            finally:
                ends.orders.close()
                ends.events.close()
                os.close(board.board)
                if not self._stopping:
                    self._lost()

        self._run("worker", run)

    def _run(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        if not self._stopping:
            self._log.event(Level.ERROR, "worker_lost", status=status)
            self._lost()

    # orders

    def give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """Raises WorkerLostError, WorkerBusyError or OrderFailedError."""
        if self._orders is None:
            raise WorkerLostError
        return self._orders.give(what, descriptors, timeout_s=_PATIENCE_S.get(what, _ORDER_S), **fields)

    def open(self, name: str, transport: Transport, descriptors: Sequence[int]) -> None:
        """Let the worker serve a ring; the descriptors stay ours. Raises WorkerLostError."""
        self.give("open", descriptors, name=name, transport=transport, hot_bytes=self._config.ring.hot_bytes)

    def close_ring(self, name: str) -> None:
        """The stream that a ring belongs to is over."""
        with suppress(WorkerLostError, WorkerBusyError):
            self.give("close", name=name)

    def counts(self) -> tuple[dict[str, Any], list[Array]]:
        """As they are now or, if the worker is busy or frozen for too long, as they were when it was last asked."""
        if self._orders is None or self._board is None:
            raise WorkerLostError
        with self._reading:
            with suppress(WorkerLostError, WorkerBusyError, OrderFailedError):
                self._orders.give("publish", timeout_s=_PUBLISH_S)
            facts, arrays = self._board.read()
        facts["age_s"] = max(0.0, time.monotonic() - facts["at_s"])
        return facts, arrays

    # the end

    def finish(self) -> None:
        """Serve what was posted, end every request, publish for the last time. The worker is gone after that."""
        self._stopping = True
        try:
            self.give("end")
        except (WorkerLostError, WorkerBusyError, OrderFailedError) as error:
            self._log.event(Level.ERROR, "worker_did_not_finish", why=type(error).__name__)

    def stop(self) -> None:
        self._stopping = True
        if self._orders is not None:
            self._orders.close()  # the worker ends with it
        if self._process is not None:
            try:
                self._process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5.0)
        if self._board is not None:
            self._board.close()
        self._orders = self._board = None
        self._threads = []
        self._ledger.close()
