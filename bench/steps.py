"""Engine steps to send: every request of a decode batch gives one row at every tap point."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protos.stethoscope.v1 import ingest_pb2
from sidecar.ring import aligned

ENGINE = "bench"
_ENVELOPE = 64 << 10  # a message of 1024 rows is 30 KiB without its tensors
_RUN = itertools.count()


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a step. ``columns`` is the width of the states or, if projected, the number of readings and one more."""

    taps: int = 4
    rows: int = 64
    columns: int = 4096
    projected: bool = False

    @property
    def token_layers(self) -> int:
        return self.taps * self.rows

    @property
    def nbytes(self) -> int:
        return self.token_layers * self.columns * (4 if self.projected else 2)


REFERENCE = Shape()  # 2 MiB: 4 tap points x 64 rows x 4096 bf16


@dataclass(frozen=True, slots=True)
class Message:
    """One step, ready to be sent by either way."""

    envelope: bytes  # for a ring: names the tensors, which lie behind it in the slot
    tensors: tuple[memoryview, ...]
    batch: ingest_pb2.StepBatch

    def write(self, slot: memoryview) -> tuple[int, int]:
        """Into a ring's slot. Returns the sizes of the message and of all."""
        slot[: len(self.envelope)] = self.envelope
        at = _ENVELOPE
        for tensor in self.tensors:
            slot[at : at + len(tensor)] = tensor
            at = aligned(at + len(tensor))
        return len(self.envelope), at

    def inline(self) -> bytes:
        """For gRPC: everything in one piece."""
        whole = ingest_pb2.StepBatch()
        whole.CopyFrom(self.batch)
        for wire, tensor in zip(whole.tensors, self.tensors, strict=True):
            field = "projected" if wire.HasField("projected_slot") else "raw"
            setattr(wire, field, bytes(tensor))
        return ingest_pb2.StreamRequest(step_batch=whole).SerializeToString()


class Steps:
    """The steps of one engine: the same requests, one token further each time. States are standard normal, of a few steps' worth.

    ``states``: of every step in turn, [taps, rows, columns], as wire elements.
    """

    def __init__(self, shape: Shape = REFERENCE, *, engine: str = ENGINE, variety: int = 4, seed: int = 0) -> None:
        self.shape = shape
        self._engine = engine
        self._run = next(_RUN)
        self._number = 0
        rng = np.random.default_rng(seed)
        self.states = [_states(shape, rng) for _ in range(variety)]

    def take(self, count: int) -> list[Message]:
        """The next ``count`` steps."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Message:
        number, self._number = self._number, self._number + 1
        tensors = tuple(memoryview(tap).cast("B") for tap in self.states[number % len(self.states)])
        batch = self._batch(number)
        at = _ENVELOPE
        for wire, tensor in zip(batch.tensors, tensors, strict=True):
            span = wire.projected_slot if self.shape.projected else wire.raw_slot
            span.offset, span.size = at, len(tensor)
            at = aligned(at + len(tensor))
        return Message(ingest_pb2.StreamRequest(step_batch=batch).SerializeToString(), tensors, batch)

    def _batch(self, number: int) -> ingest_pb2.StepBatch:
        rows = self.shape.rows
        return ingest_pb2.StepBatch(
            batch_id=f"b{self._run}-{number}",
            engine_id=self._engine,
            taken_ns=time.time_ns(),
            step=number,
            plan_generation=int(self.shape.projected),
            segments=ingest_pb2.Segments(
                request_ids=[f"chatcmpl-{self._run}-{row:06x}" for row in range(rows)],
                rows=[1] * rows,
                phases=[ingest_pb2.PHASE_DECODE] * rows,
                positions=[16 + number] * rows,
            ),
            tensors=[self._tensor(layer) for layer in range(self.shape.taps)],
        )

    def _tensor(self, layer: int) -> ingest_pb2.TapTensor:
        element = ingest_pb2.ELEMENT_TYPE_F32 if self.shape.projected else ingest_pb2.ELEMENT_TYPE_BF16
        point = ingest_pb2.TapPoint(layer=layer, site=ingest_pb2.SITE_RESID_POST)
        return ingest_pb2.TapTensor(tap_point=point, dtype=element, rows=self.shape.rows, columns=self.shape.columns)


def _states(shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    values = rng.standard_normal((shape.taps, shape.rows, shape.columns), dtype=np.float32)
    if shape.projected:
        values[:, :, -1] = np.square(values[:, :, -1])  # the squared norm
        return values
    return (values.view(np.uint32) >> 16).astype(np.uint16)
