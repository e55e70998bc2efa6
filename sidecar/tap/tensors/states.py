"""Rows of torch states that the tap owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from sidecar.tap.recorder import OpenStep
from sidecar.types import ElementType

ELEMENT = {
    torch.float32: ElementType.F32,
    torch.float16: ElementType.F16,
    torch.bfloat16: ElementType.BF16,
}


Later: TypeAlias = Callable[[], torch.Tensor]  # on the CPU; may wait for a device


@dataclass(frozen=True, slots=True)
class TorchStates:
    """[T, D] on the CPU."""

    rows: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows.shape[0], self.rows.shape[1])

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
        return self.rows.numel() * self.rows.element_size()

    def part(self, start: int, stop: int) -> TorchStates:
        return TorchStates(self.rows[start:stop])

    def write(self, into: memoryview) -> None:
        rows = self.rows if self.rows.dtype in ELEMENT else self.rows.float()
        if rows.dtype is torch.bfloat16:  # which numpy does not have
            rows = rows.view(torch.int16)
        storage = self.dtype.storage  # numpy copies on this thread alone, torch would wake its pool
        np.copyto(np.frombuffer(into, storage).reshape(self.shape), rows.numpy().view(storage))


def copy_rows(step: OpenStep, states: torch.Tensor) -> TorchStates:
    """The step's chosen rows of ``states`` on the CPU ([..., D], any leading shape), copied: the engine may overwrite its own."""
    flat = flattened(step, states)
    if step.solid:
        return TorchStates(flat[step.rows[0] : step.rows[-1] + 1].clone())
    if step.index is None:
        step.index = torch.tensor(step.rows)
    assert isinstance(step.index, torch.Tensor)
    return TorchStates(flat.index_select(0, step.index))


def flattened(step: OpenStep, states: torch.Tensor) -> torch.Tensor:
    """[rows of the step, D], without a history. Raises ValueError if the step's rows are not all there."""
    flat = (states.detach() if states.requires_grad else states).reshape(-1, states.shape[-1])
    if step.rows[-1] >= flat.shape[0]:
        raise ValueError("the states have fewer rows than the step")
    return flat
