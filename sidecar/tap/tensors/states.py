"""Rows of torch states that the tap owns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from sidecar.tap.joined import JoinedStates
from sidecar.tap.recorder import OpenStep
from sidecar.tap.step import States
from sidecar.types import ElementType, IndexArray

ELEMENT = {
    torch.float32: ElementType.F32,
    torch.float16: ElementType.F16,
    torch.bfloat16: ElementType.BF16,
}


Later: TypeAlias = Callable[[], torch.Tensor]  # on the CPU; may wait for a device


@dataclass(frozen=True, slots=True)
class TorchStates:
    """[T, D] on the CPU: all of ``rows``, or those that ``order`` names."""

    rows: torch.Tensor
    order: IndexArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.rows.shape
        return (rows if self.order is None else len(self.order), columns)

    @property
    def dtype(self) -> ElementType:
        """Types that the wire does not have go as float32."""
        return ELEMENT.get(self.rows.dtype, ElementType.F32)

    @property
    def projected(self) -> bool:
        return False

    @property
    def sample(self) -> None:
        return None

    @property
    def held_bytes(self) -> int:
        return self.rows.nbytes

    def part(self, start: int, stop: int) -> TorchStates:
        if self.order is not None:
            return TorchStates(self.rows, self.order[start:stop])
        return TorchStates(self.rows[start:stop])

    def joined(self, others: Sequence[States], order: IndexArray) -> States:
        parts = [self, *others]
        rows = [part.rows for part in parts if isinstance(part, TorchStates) and part.order is None]
        if len(rows) < len(parts):
            return JoinedStates.of(parts, order)
        return TorchStates(torch.cat(rows), order)

    def write(self, into: memoryview) -> None:
        rows = self.rows if self.rows.dtype in ELEMENT else self.rows.float()
        if rows.dtype is torch.bfloat16:  # which numpy does not have
            rows = rows.view(torch.int16)
        storage = self.dtype.storage  # numpy copies on this thread alone, torch would wake its pool
        made = np.frombuffer(into, storage).reshape(self.shape)
        if self.order is None:
            np.copyto(made, rows.numpy().view(storage))
        else:  # "clip" changes no index here; with "raise" numpy would write to a buffer first
            np.take(rows.numpy().view(storage), self.order, axis=0, out=made, mode="clip")


def copy_rows(step: OpenStep, states: torch.Tensor) -> TorchStates:
    """The step's chosen rows of ``states`` on the CPU ([..., D], any leading shape), copied: the engine may overwrite its own.

    Raises IndexError if they are not all there.
    """
    index = step.index
    if index is None:
        index = step.index = _LAST.index(step.rows)
    assert isinstance(index, torch.Tensor)
    return TorchStates(_flat(states).index_select(0, index))


class _Last(threading.local):
    """The rows that a thread chose last, as torch wants them.

    In their decode requests keep their rows for many steps, and a tensor of three indices costs twice what three rows do.
    """

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._index = torch.tensor([], dtype=torch.int64)

    def index(self, rows: list[int]) -> torch.Tensor:
        if rows != self._rows:
            self._index = torch.tensor(rows)
            self._rows = rows
        return self._index


_LAST = _Last()


def flattened(step: OpenStep, states: torch.Tensor) -> torch.Tensor:
    """[rows of the step, D], without a history. Raises ValueError if the step's rows are not all there."""
    flat = _flat(states)
    if step.rows[-1] >= flat.shape[0]:
        raise ValueError("the states have fewer rows than the step")
    return flat


def _flat(states: torch.Tensor) -> torch.Tensor:
    states = states.detach() if states.requires_grad else states
    return states if states.ndim == 2 else states.reshape(-1, states.shape[-1])
