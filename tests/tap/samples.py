"""Steps made by hand, for tests that need no engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.tap.joined import JoinedStates
from sidecar.tap.step import CapturedStep, RequestInfo, Sample, States, StepSegment
from sidecar.types import ElementType, IndexArray, ModelIdentity, Phase, TapPoint

IDENTITY = ModelIdentity("tiny", "LlamaForCausalLM", 4, 8, dtype="float32", engine="test", engine_version="1")


@dataclass(frozen=True, slots=True)
class NumpyStates:
    rows: npt.NDArray[np.float32]
    projected: bool = False
    sample: Sample | None = None
    dtype: ElementType = ElementType.F32

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows.shape[0], self.rows.shape[1])

    @property
    def held_bytes(self) -> int:
        return self.rows.nbytes

    def part(self, start: int, stop: int) -> NumpyStates:
        sample = None if self.sample is None else self.sample.part(start, stop)
        return NumpyStates(self.rows[start:stop], self.projected, sample)

    def joined(self, others: Sequence[States], order: IndexArray) -> JoinedStates:
        return JoinedStates.of([self, *others], order)

    def write(self, into: memoryview) -> None:
        np.copyto(np.frombuffer(into, "<f4").reshape(self.shape), self.rows)


class BrokenStates(NumpyStates):
    def write(self, into: memoryview) -> None:
        into[:1] = b"x"
        raise ValueError("cannot be read")


def states(rows: int, columns: int = 8, seed: int = 0) -> NumpyStates:
    return NumpyStates(np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32))


def segment(name: str, positions: range, prompt: int = 0) -> StepSegment:
    phase = Phase.PREFILL if positions.start < prompt else Phase.DECODE
    return StepSegment(RequestInfo(name), name, positions, phase, prompt)


def step(name: str = "r", first: int = 0, rows: int = 1, *, number: int = 1, columns: int = 8) -> CapturedStep:
    """One request's rows at block 1."""
    return captured((segment(name, range(first, first + rows), rows),), states(rows, columns, first), number)


def captured(segments: tuple[StepSegment, ...], values: NumpyStates, number: int = 1) -> CapturedStep:
    tokens = sum(len(one.positions) for one in segments)
    return CapturedStep(time.time_ns(), number, segments, ((TapPoint(1), values),), tokens)
