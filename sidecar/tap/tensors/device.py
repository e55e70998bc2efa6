"""A step's rows on a GPU: the engine's thread launches one copy a tap point, and the sender's thread the rest.

A launch costs the engine's thread more than a thousand rows cost the device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sidecar.tap.joined import JoinedStates
from sidecar.tap.recorder import OpenStep
from sidecar.tap.step import Sample, States
from sidecar.tap.tensors.projection import Readings, read_by, sample_rows
from sidecar.tap.tensors.states import ELEMENT, Later, TorchStates, flattened
from sidecar.tap.tensors.workshop import Job, Kept, Workshop, event, on_device
from sidecar.types import ElementType, IndexArray, TapPoint

_SPAN_BYTES = (
    1 << 20
)  # a piece of the states up to so large is kept whole: to choose its rows here takes two launches more


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Rows ``start:stop`` of [T, D] that are still on a device."""

    rows: Later  # [T, D]
    width: int
    kind: torch.dtype
    start: int
    stop: int
    held_bytes: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.stop - self.start, self.width)

    @property
    def dtype(self) -> ElementType:
        return ELEMENT.get(self.kind, ElementType.F32)

    @property
    def projected(self) -> bool:
        return False

    @property
    def sample(self) -> None:
        return None

    def joined(self, others: Sequence[States], order: IndexArray) -> JoinedStates:
        return JoinedStates.of([self, *others], order)

    def part(self, start: int, stop: int) -> DeviceRows:
        return replace(self, start=self.start + start, stop=self.start + stop)

    def write(self, into: memoryview) -> None:
        TorchStates(self.rows()[self.start : self.stop]).write(into)


class DeviceStep:
    """What is kept of one step on one stream of a device, in states of one width and type."""

    def __init__(self, step: OpenStep, states: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self._step = step
        self._width, self._kind = states.shape[-1], states.dtype
        self._stream = stream
        self._first, self._span = step.rows[0], step.rows[-1] - step.rows[0] + 1
        whole = step.solid or self._span * self._width * self._kind.itemsize <= _SPAN_BYTES
        self._index = None if whole else on_device(step.rows, states.device)
        self._rows: dict[TapPoint, torch.Tensor] = {}

    def take(self, point: TapPoint, states: torch.Tensor) -> None:
        """Copy them: the engine may overwrite its own. Raises what ``read_by`` does, and ValueError for too few rows."""
        if self._step.plan is not None:
            read_by(self._step.plan, point, self._width)
        flat = flattened(self._step, states)
        if self._index is not None:
            self._rows[point] = flat.index_select(0, self._index)
        elif self._span == flat.shape[0]:
            self._rows[point] = flat.clone()
        else:
            self._rows[point] = flat.narrow(0, self._first, self._span).clone()

    def seal(self, workshop: Workshop) -> Iterator[tuple[TapPoint, States]]:
        """The states, in the order in which the tap points fired. Nothing is launched: they are made when they are written."""
        step, points, ready = self._step, tuple(self._rows), event()
        ready.record(self._stream)
        sample = range(0) if step.plan is None else sample_rows(step.number, len(step.rows), step.sampled_steps)
        job = Job(Kept(points, list(self._rows.values()), ready, self._chosen(), step.plan, sample), workshop)
        for place, point in enumerate(points):
            yield point, self._states(job, place, point, sample)

    def _chosen(self) -> list[int] | None:
        if self._index is not None or self._step.solid:
            return None
        return [row - self._first for row in self._step.rows]

    def _states(self, job: Job, place: int, point: TapPoint, which: range) -> States:
        count, plan = len(self._step.rows), self._step.plan
        rows = count if self._index is not None else self._span
        held = rows * self._width * self._kind.itemsize
        if plan is None:
            return DeviceRows(partial(job.values, place), self._width, self._kind, 0, count, held)
        sample = None
        if which:
            raw = DeviceRows(partial(job.samples, place), self._width, self._kind, 0, len(which), 0)  # counted already
            sample = Sample(tuple(which), raw)
        columns = plan.points[point].directions.shape[1]
        return Readings(partial(job.values, place), columns, 0, count, count, held, sample)


class DeviceSteps(threading.local):
    """The step that a thread is in, by the streams, types and widths that its states come by: one of each, as a rule."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self._step: OpenStep | None = None
        self._kept: dict[tuple[int, int, torch.dtype, int], DeviceStep] = {}
        self._streams: dict[tuple[int, int], torch.cuda.Stream] = {}

    def take(self, step: OpenStep, point: TapPoint, states: torch.Tensor) -> None:
        """Keep the step's chosen rows of ``states`` [..., D].

        Raises what ``DeviceStep.take`` does, and NotImplementedError for another kind of device, and in a step that is being
        captured as a graph: an event of ours would become a part of it.
        """
        if not states.is_cuda:
            raise NotImplementedError("states that are neither in the host's memory nor on a CUDA device")
        if self._step is not step:
            if torch.cuda.is_current_stream_capturing():
                raise NotImplementedError("a step that is being captured as a graph")
            self._step, self._kept = step, {}
        device = states.get_device()
        stream = _stream(device)
        key = (device, stream, states.dtype, states.shape[-1])
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = DeviceStep(step, states, self._streams.get(key[:2]) or self._meet(*key[:2]))
        kept.take(point, states)

    def finish(self) -> Iterator[tuple[TapPoint, States]]:
        """What was kept of the step. It is let go of here."""
        kept, self._step, self._kept = self._kept, None, {}
        for one in kept.values():
            yield from one.seal(self.workshop)

    def _meet(self, device: int, stream: int) -> torch.cuda.Stream:
        met = self._streams[device, stream] = torch.cuda.current_stream(device)
        return met


def _current(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _current)  # noqa: SLF001 - a tenth of the public one's 3.5 us
