"""A denoising loop's own axis: every call of the model is one timestep of every row, not a token more."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sidecar.tap.faults import Unsupported
from sidecar.tap.recorder import OpenStep, Span
from sidecar.tap.transformers.batches import Batch
from sidecar.tap.transformers.inputs import argument
from sidecar.types import Phase

if TYPE_CHECKING:
    from torch import nn

_POSITIONS = (1 << 32) - 1  # as the wire has them


@dataclass(frozen=True, slots=True)
class Timesteps:
    """Where a call's timestep stands: ``at`` is the number itself, or the name of the argument that has it, times ``scale``."""

    at: int | str
    scale: float = 1.0

    def of(self, model: nn.Module, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """One timestep a row. Reads a tensor: waits for a device. Raises Unsupported if they are no such numbers."""
        told = self.at if isinstance(self.at, int) else argument(model, self.at, args, kwargs)
        values = told.flatten().tolist() if isinstance(told, torch.Tensor) else [told]
        if len(values) == 1:
            values *= rows
        if len(values) != rows:
            raise Unsupported("timesteps of another number of rows than are named")
        scaled = [float(value) * (1.0 if isinstance(self.at, int) else self.scale) for value in values]
        if not all(0 <= value < _POSITIONS for value in scaled):
            raise Unsupported("a timestep that is no position: scale it to whole numbers from 0 on")
        return [round(value) for value in scaled]


# None: rows are those of tokens.
TIMESTEPS: ContextVar[Timesteps | None] = ContextVar("stethoscope_timesteps", default=None)


def timestep_spans(batch: Batch, steps: list[int]) -> list[Span]:
    """One row each. Noise falls and positions with it, so none is passed over; the same one again was seen already."""
    for request, step in zip(batch.requests, steps, strict=True):
        if request.next_position != step + 1:
            request.next_position = step
    return [Span(request, row, step, 1) for row, (request, step) in enumerate(zip(batch.requests, steps, strict=True))]


def averaged(step: OpenStep, states: torch.Tensor) -> torch.Tensor:
    """The row of a timestep: the mean [rows, D] of its states [rows, N, D]. Anything but a timestep's states is left alone.

    Raises Unsupported if the model has computed other rows than were named.
    """
    if step.phase is not Phase.TIMESTEP:
        return states
    if states.ndim != 3 or states.shape[0] != step.rows_computed:
        raise Unsupported("a timestep whose states are not [rows, N, D], of as many rows as are named")
    return states.detach().mean(dim=1)
