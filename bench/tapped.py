"""The tap as an engine drives it, without a model: its own recorder, client and sender. The states of a step are there already."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from bench.artifacts import BENCH_MODEL
from bench.steps import REFERENCE, Steps
from sidecar.tap.books import Books
from sidecar.tap.client import TapClient
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import RequestInfo
from sidecar.tap.tensors.states import TorchStates
from sidecar.types import ModelIdentity, SamplingPolicy, TapPoint

_WAIT_S = 60.0
_WINDOW = 6  # steps on their way that keep every slot of a ring taken


@dataclass
class TimedBooks(Books):
    """A ledger that also notes how long answers take, from a batch's being handed over to its answer; answers come in order."""

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.waited_s: list[float] = []
        self._sent_s: deque[float] = deque()

    def send(self) -> None:
        Books.send(self)
        self._sent_s.append(time.perf_counter())

    def settle(self, *, refused: bool) -> None:
        Books.settle(self, refused=refused)
        with self.changed:
            self.waited_s.append(time.perf_counter() - self._sent_s.popleft())
            self.changed.notify_all()

    def drop(self, tokens: int) -> None:
        Books.drop(self, tokens)
        with self.changed:
            self.changed.notify_all()


class _Client(TapClient):
    def __init__(self, address: str, identity: ModelIdentity) -> None:
        super().__init__(address, identity, engine_id="bench")
        self.books = self._books = TimedBooks(self.traffic)


@dataclass(frozen=True, slots=True)
class Load:
    """What came of so many seconds: steps scored a second, waits of those that were sent, CPU seconds of each on the engine's
    thread, and of a sent step on the tap's own threads."""

    scored_per_s: float
    waited_s: tuple[float, ...]
    engine_cpu_s: tuple[float, ...]
    tap_cpu_s: float

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.waited_s, 0.99))


class Engine:
    """Decode steps of 64 requests at 4 tap points. Owned by one thread, which stands for the engine's."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._recorder = Recorder(client, SamplingPolicy(1.0))
        self._requests = [self._recorder.request(RequestInfo(f"chatcmpl-{i:08x}"), 16) for i in range(REFERENCE.rows)]
        self._states = [torch.from_numpy(one.view(np.int16)).view(torch.bfloat16) for one in Steps().states]
        self._number = 0

    def step(self) -> float:
        """One step. Returns the CPU seconds that the tap took on this thread, the copy of the rows among them."""
        number, self._number = self._number, self._number + 1
        start_s = time.thread_time()
        self._recorder.begin(Span(request, row, 16 + number, 1) for row, request in enumerate(self._requests))
        step = self._recorder.open
        if step is not None and step.wanted:
            for layer, rows in enumerate(self._states[number % len(self._states)]):
                self._recorder.keep(TapPoint(layer), TorchStates(rows.clone()))
        self._recorder.end()
        return time.thread_time() - start_s

    def saturate(self, seconds: float) -> Load:
        """As many steps as are answered: a few are always on their way."""
        return self._run(seconds, self._room)

    def offer(self, seconds: float, per_s: float) -> Load:
        """Steps at even distances, whatever becomes of them. Only this call sleeps: the engine computes meanwhile."""
        due_s = time.perf_counter()

        def wait() -> None:
            nonlocal due_s
            due_s += 1 / per_s
            time.sleep(max(0.0, due_s - time.perf_counter()))

        return self._run(seconds, wait)

    def _run(self, seconds: float, wait: Callable[[], None]) -> Load:
        books = self._client.books
        ok, seen = books.ok, len(books.waited_s)
        begun_s, cpu_s, own_s = time.perf_counter(), time.process_time(), time.thread_time()
        engine_s = []
        while time.perf_counter() - begun_s < seconds:
            wait()
            engine_s.append(self.step())
        self._settle()
        took_s = time.perf_counter() - begun_s
        others_s = time.process_time() - cpu_s - (time.thread_time() - own_s)
        scored = books.ok - ok
        return Load(scored / took_s, tuple(books.waited_s[seen:]), tuple(engine_s), others_s / max(1, scored))

    def _room(self) -> None:
        self._until(_WINDOW)

    def _settle(self) -> None:
        self._until(1)

    def _until(self, open_steps: int) -> None:
        """Until fewer steps than these are under way."""
        books = self._client.books
        with books.changed:
            if not books.changed.wait_for(
                lambda: self._number - books.ok - books.refused - books.dropped < open_steps, _WAIT_S
            ):
                raise TimeoutError("the tap's steps are not answered")


@contextmanager
def connected(address: str) -> Iterator[Engine]:
    """An engine whose tap is connected; its steps before are none."""
    torch.set_num_threads(1)
    client = _Client(address, ModelIdentity(**{**BENCH_MODEL, "width": REFERENCE.columns}))
    client.start()
    ends_s = time.monotonic() + _WAIT_S
    while not client.connected:
        if time.monotonic() > ends_s:
            raise TimeoutError("the tap did not connect")
        time.sleep(0.02)
    try:
        yield Engine(client)
    finally:
        client.stop(5.0)
        if client.errors:
            raise RuntimeError(f"the tap survived {client.errors} errors")
