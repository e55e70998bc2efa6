"""Rows of torch states that the tap owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sidecar.tap.recorder import OpenStep
from sidecar.types import ElementType

_ELEMENT = {
    torch.float32: ElementType.F32,
    torch.float16: ElementType.F16,
    torch.bfloat16: ElementType.BF16,
}


@dataclass(frozen=True, slots=True)
class TorchStates:
    """[T, D] on the CPU; ``ready`` is the event after which a copy from a device is complete."""

    rows: torch.Tensor
    ready: torch.Event | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows.shape[0], self.rows.shape[1])

    @property
    def dtype(self) -> ElementType:
        """Types that the wire does not have go as float32."""
        return _ELEMENT.get(self.rows.dtype, ElementType.F32)

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
        return TorchStates(self.rows[start:stop], self.ready)

    def write(self, into: memoryview) -> None:
        if self.ready is not None:
            self.ready.synchronize()
        rows = self.rows if self.rows.dtype in _ELEMENT else self.rows.float()
        if rows.dtype is torch.bfloat16:  # which numpy does not have
            rows = rows.view(torch.int16)
        storage = self.dtype.storage  # numpy copies on this thread alone, torch would wake its pool
        np.copyto(np.frombuffer(into, storage).reshape(self.shape), rows.numpy().view(storage))


def copy_rows(step: OpenStep, states: torch.Tensor) -> TorchStates:
    """The step's chosen rows of ``states`` ([..., D], any leading shape), copied: the engine may overwrite its own.

    From a device the copy goes to pinned memory and is not waited for here.
    """
    kept = chosen_rows(step, states)
    return TorchStates(kept) if kept.device.type == "cpu" else to_host(kept)


def chosen_rows(step: OpenStep, states: torch.Tensor) -> torch.Tensor:
    """[T, D]. On a CPU a copy; on a device perhaps a view, good for what is queued on the engine's stream now."""
    flat = states.detach().reshape(-1, states.shape[-1])  # [rows of the step, D]
    if step.rows[-1] >= flat.shape[0]:
        raise ValueError("the states have fewer rows than the step")
    if step.solid:
        rows = flat[step.rows[0] : step.rows[-1] + 1]
        return rows.clone() if flat.device.type == "cpu" else rows
    if step.index is None:
        step.index = _index(step.rows, flat.device)
    assert isinstance(step.index, torch.Tensor)
    return flat.index_select(0, step.index)


def _index(rows: list[int], device: torch.device) -> torch.Tensor:
    """Put on a device without waiting for it."""
    if device.type == "cpu":
        return torch.tensor(rows)
    return torch.tensor(rows, pin_memory=True).to(device, non_blocking=True)


def to_host(rows: torch.Tensor) -> TorchStates:
    """Queue the copy of a device's rows to pinned memory. Nothing is waited for until they are written out."""
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    ready = torch.Event(rows.device)
    ready.record()
    return TorchStates(host, ready)
