"""Rows of torch states that the tap owns."""

from __future__ import annotations

from dataclasses import dataclass

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
    def nbytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def part(self, start: int, stop: int) -> TorchStates:
        return TorchStates(self.rows[start:stop], self.ready)

    def encode(self) -> tuple[ElementType, bytes]:
        """Types that the wire does not have go as float32."""
        if self.ready is not None:
            self.ready.synchronize()
        rows = self.rows if self.rows.dtype in _ELEMENT else self.rows.float()
        element = _ELEMENT[rows.dtype]
        if element is ElementType.BF16:
            rows = rows.view(torch.int16)
        return element, rows.numpy().tobytes()


def copy_rows(step: OpenStep, states: torch.Tensor) -> TorchStates:
    """The step's chosen rows of ``states`` ([..., D], any leading shape), copied: the engine may overwrite its own.

    From a device the copy goes to pinned memory and is not waited for here. (Read from the documentation, not run.)
    """
    flat = states.detach().reshape(-1, states.shape[-1])  # [rows of the step, D]
    if step.rows[-1] >= flat.shape[0]:
        raise ValueError("the states have fewer rows than the step")
    if step.solid:
        rows = flat[step.rows[0] : step.rows[-1] + 1]
        kept = rows.clone() if flat.device.type == "cpu" else rows
    else:
        if step.index is None:
            step.index = _index(step.rows, flat.device)
        assert isinstance(step.index, torch.Tensor)
        kept = flat.index_select(0, step.index)
    return TorchStates(kept) if flat.device.type == "cpu" else _to_host(kept)


def _index(rows: list[int], device: torch.device) -> torch.Tensor:
    """Put on a device without waiting for it."""
    if device.type == "cpu":
        return torch.tensor(rows)
    return torch.tensor(rows, pin_memory=True).to(device, non_blocking=True)


def _to_host(rows: torch.Tensor) -> TorchStates:
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    host.copy_(rows, non_blocking=True)
    ready = torch.Event(rows.device)
    ready.record()
    return TorchStates(host, ready)
