"""A step's rows on a GPU: one launch a tap point to keep them, and at the end of the step the rest for all of them together.

A launch costs the engine's thread ten times what a row costs the device. What is left for the end runs on a stream of its own:
the engine's does not wait for a product or for the way to the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from sidecar.tap.recorder import OpenStep
from sidecar.tap.step import Sample, States
from sidecar.tap.transformers.landing import Landed, Landings, Shaped, event
from sidecar.tap.transformers.projection import Readings, read_by, sample_rows
from sidecar.tap.transformers.resident import Resident
from sidecar.tap.transformers.states import TorchStates, flattened
from sidecar.types import TapPoint


class Staging:
    """For one thread of the engine, one of its streams, and states of one width and type.

    Its memory belongs to the engine's stream while a step goes on, and to its own stream from the step's end until ``_read``.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._width = width
        self._dtype = dtype
        self._engine = torch.cuda.current_stream(device)
        self._own: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it so
        self._kept = event()  # the engine's stream has put all rows there
        self._read = event()  # they have been read
        self._landings = Landings()
        self.resident = Resident(device)
        self._rows = Shaped(torch.empty(0), ())  # [P, T, D]
        self._index = torch.empty(0)  # int64 [T]
        self._points: dict[TapPoint, int] = {}
        self.step: OpenStep | None = None

    def take(self, step: OpenStep, point: TapPoint, states: torch.Tensor, room: int) -> None:
        """Keep the step's chosen rows of ``states`` [..., D]. room: how many tap points a step has at most.

        Raises what ``read_by`` does, ValueError if the rows are not all there, and NotImplementedError in a step that is being
        captured as a graph: our events would spoil it.
        """
        if step.plan is not None:
            read_by(step.plan, point, self._width)
        flat = flattened(step, states)
        if self.step is not step:
            self._open(step, room)
        into = self._rows.parts[self._points.setdefault(point, len(self._points))]
        if not step.solid:
            torch.index_select(flat, 0, self._index, out=into)
        elif len(step.rows) == flat.shape[0]:
            into.copy_(flat)
        else:
            into.copy_(flat.narrow(0, step.rows[0], len(step.rows)))

    def finish(self) -> Iterator[tuple[TapPoint, States]]:
        """Queue what is left to do with the step's rows; what comes of it, in the order in which the tap points fired."""
        step, self.step = self.step, None
        assert step is not None
        points, rows = tuple(self._points), self._rows.whole
        if len(points) < rows.shape[0]:
            rows = rows[: len(points)]
        self._kept.record(self._engine)
        with torch.cuda.stream(self._own):
            self._own.wait_event(self._kept)
            made = self._raw(rows) if step.plan is None else self._readings(step, points, rows)
            self._read.record(self._own)
        return zip(points, made, strict=True)

    def _raw(self, rows: torch.Tensor) -> list[States]:
        landed, parts = self._to_host(rows)
        return [TorchStates(part, landed) for part in parts]

    def _readings(self, step: OpenStep, points: tuple[TapPoint, ...], rows: torch.Tensor) -> list[States]:
        plan = step.plan
        assert plan is not None
        landed, parts = self._to_host(self.resident.multiply(plan, points, rows))
        count = rows.shape[1]
        which = sample_rows(step.number, count, step.sampled_steps)
        samples: list[Sample | None] = [None] * len(points)
        if which:
            states = self._raw(rows[:, which.start : which.stop : which.step].contiguous())
            samples = [Sample(tuple(which), one) for one in states]
        columns = [plan.points[point].directions.shape[1] for point in points]
        return [
            Readings(part, width, 0, count, count, landed, sample)
            for part, width, sample in zip(parts, columns, samples, strict=True)
        ]

    def _to_host(self, values: torch.Tensor) -> tuple[Landed, tuple[torch.Tensor, ...]]:
        """Copy [P, ...], and return the copy's P parts."""
        landing = self._landings.take(values.numel() * values.element_size())
        shaped = landing.shaped(values.shape, values.dtype)
        shaped.whole.copy_(values, non_blocking=True)
        landing.done.record(self._own)
        return Landed(landing, self._landings), shaped.parts

    def _open(self, step: OpenStep, room: int) -> None:
        """The first tap point of a step. Steps of as many rows as the last one find everything in place."""
        if torch.cuda.is_current_stream_capturing():
            raise NotImplementedError("a step that is being captured as a graph")
        self._engine.wait_event(self._read)
        self._points.clear()
        shape = (room, len(step.rows), self._width)
        if self._rows.whole.shape != shape:
            self._make(shape)
        if not step.solid:
            self._choose(step.rows)
        self.step = step

    def _make(self, shape: tuple[int, int, int]) -> None:
        """On the engine's stream; the memory that it replaces is free when both streams are done with it."""
        device = self._engine.device
        with torch.inference_mode(mode=False):  # what is made in inference mode could not be written outside of it
            whole = torch.empty(shape, dtype=self._dtype, device=device)
            self._rows = Shaped(whole, tuple(whole.unbind(0)))
            self._index = torch.empty(shape[1], dtype=torch.int64, device=device)
        whole.record_stream(self._own)

    def _choose(self, rows: list[int]) -> None:
        landing = self._landings.take(8 * len(rows))
        numbers = landing.shaped((1, len(rows)), torch.int64).parts[0]
        numbers.numpy()[:] = rows
        self._index.copy_(numbers, non_blocking=True)
        landing.done.record(self._engine)
        self._landings.give(landing)


class Stagings(threading.local):
    """A thread's own, one for each stream, type and width that its states come by."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, torch.dtype, int], Staging] = {}

    def take(self, step: OpenStep, point: TapPoint, states: torch.Tensor, room: int) -> None:
        """As ``Staging.take``. Raises NotImplementedError for states on another kind of device."""
        if not states.is_cuda:
            raise NotImplementedError("states that are neither in the host's memory nor on a CUDA device")
        device, width = states.get_device(), states.shape[-1]
        key = (device, _stream(device), states.dtype, width)
        staging = self._known.get(key)
        if staging is None:
            staging = self._known[key] = Staging(width, states.dtype, states.device)
        staging.take(step, point, states, room)

    def finish(self, step: OpenStep) -> Iterator[tuple[TapPoint, States]]:
        """Queue what is left to do with the step's rows."""
        for staging in self._known.values():
            if staging.step is step:
                yield from staging.finish()


def _current(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _current)  # noqa: SLF001 - a tenth of the public one's 3.5 us
