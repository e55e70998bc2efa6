"""What a device still has to do with a step's rows once they are kept: for the sender's thread, on a stream of its own.

The engine's thread launches nothing of it, and the engine's stream does not wait for it.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from sidecar.tap.plan import FetchedPlan
from sidecar.tap.tensors.resident import Resident, pinned
from sidecar.types import TapPoint

_FLOATS = 16 << 20  # of rows at a time: a long prefill is not to take the engine's memory


class Kept(NamedTuple):
    """Rows on a device, and what is to become of them."""

    points: tuple[TapPoint, ...]
    rows: list[torch.Tensor]  # P times [S, D]
    ready: torch.cuda.Event  # behind which they are there
    chosen: list[int] | None  # which T of the S; None: all
    plan: FetchedPlan | None  # None: they are wanted as they are
    sample: range  # with a plan: which of the T are wanted as they are too


class Results(NamedTuple):
    """On the host, by tap point."""

    values: list[torch.Tensor]  # rows [T, D], or readings as ``projection.Readings`` has them
    samples: list[torch.Tensor]  # [R, D]; none in most steps


class Bench:
    """One thread's place on one device."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._done = event(blocking=True)  # who waits sleeps: by default it spins for as long as the device works
        self.resident = Resident(device)

    def make(self, kept: Kept) -> Results:
        """Waits for the device. The rows can be let go then, whatever was raised: their memory is the engine's again."""
        try:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(kept.ready)
                made = queue(kept, self.resident)
        finally:
            self._done.record(self._stream)
            self._done.synchronize()  # other threads of Python run meanwhile
        return made


def queue(kept: Kept, resident: Resident) -> Results:
    """Let the device make what is wanted, on the current stream. Nothing is waited for: the results are not there yet."""
    values: list[torch.Tensor] = []
    samples: list[torch.Tensor] = []
    which = kept.sample
    index = None if kept.chosen is None else on_device(kept.chosen, kept.rows[0].device)
    together = max(1, _FLOATS // kept.rows[0].numel())
    for first in range(0, len(kept.rows), together):
        rows = torch.stack(kept.rows[first : first + together])  # [P, S, D]
        rows = rows if index is None else rows.index_select(1, index)
        if kept.plan is None:
            values.extend(_to_host(rows))
            continue
        values.extend(_to_host(resident.multiply(kept.plan, kept.points, first, rows)))
        if which:
            samples.extend(_to_host(rows[:, which.start : which.stop : which.step].contiguous()))
    return Results(values, samples)


class Workshop(threading.local):
    """A thread's own benches, one on each device."""

    def __init__(self) -> None:
        self.benches: dict[torch.device, Bench] = {}

    def make(self, kept: Kept) -> Results:
        device = kept.rows[0].device
        bench = self.benches.get(device)
        if bench is None:
            bench = self.benches[device] = Bench(device)
        return bench.make(kept)


class Job:
    """What is to be made of a step's rows, of all tap points at once: by whoever asks first, for whoever asks later."""

    __slots__ = ("_kept", "_results", "_workshop")

    def __init__(self, kept: Kept, workshop: Workshop) -> None:
        self._kept: Kept | None = kept
        self._workshop = workshop
        self._results = Results([], [])

    def values(self, place: int) -> torch.Tensor:
        """Of the tap point at that place. Waits for the device the first time."""
        return self._made().values[place]

    def samples(self, place: int) -> torch.Tensor:
        return self._made().samples[place]

    def _made(self) -> Results:
        if self._kept is not None:
            self._results = self._workshop.make(self._kept)
            self._kept = None
        return self._results


def event(*, blocking: bool = False) -> torch.cuda.Event:
    made: torch.cuda.Event = torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]  # torch leaves it so
    return made


def on_device(rows: list[int], device: torch.device) -> torch.Tensor:
    """Put there without waiting for it."""
    return pinned(torch.tensor(rows), device).to(device, non_blocking=True)


def _to_host(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queue the copy of [P, ...] to pinned memory, and return the copy's P parts."""
    host = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=not values.is_cpu)
    return host.copy_(values, non_blocking=True).unbind(0)
