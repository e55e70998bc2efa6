"""Buffers that the model's own graph writes its states to, and the operator that does it.

To ``torch.compile`` the operator is opaque: it is called at every step. In a CUDA graph its copy is a part of the graph, from and
to memory that stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from sidecar.types import TapPoint

_MARK = -12345.0
_CLEARED_STEPS = 64
Take = Callable[[torch.Tensor, torch.Tensor | None], None]  # states [..., D], and what is to be added to them
_BUFFERS: dict[
    int, torch.Tensor
] = {}  # of this process: an operator can be given numbers and tensors, and nothing else


@cache
def _operator() -> Callable[..., None]:
    @torch.library.custom_op("stethoscope::keep", mutates_args=("mark",))
    def keep(states: torch.Tensor, added: torch.Tensor | None, mark: torch.Tensor, number: int) -> None:  # noqa: ARG001 - see below
        """``mark`` is said to be written to, or a compiler would leave the call out: nobody uses what it returns."""
        flat = states.reshape(-1, states.shape[-1])
        into = _BUFFERS[number][: flat.shape[0]]
        if added is None:
            into.copy_(flat)
        else:
            torch.add(flat, added.reshape(flat.shape), out=into)

    keep.register_fake(lambda states, added, mark, number: None)  # noqa: ARG005 - torch calls it by these names
    operator: Callable[..., None] = torch.ops.stethoscope.keep
    return operator


class Shelf:
    """One buffer a tap point: [the most rows of a step, width], in the model's own type. ``nbytes`` is what they hold for good."""

    def __init__(self, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self._rows, self._device, self._dtype = rows, device, dtype
        self._mark = torch.zeros(1, device=device)
        self._numbers: dict[TapPoint, int] = {}
        self._loose: dict[TapPoint, torch.Tensor] = {}
        self._steps = 0

    @property
    def nbytes(self) -> int:
        return sum(_BUFFERS[number].nbytes for number in self._numbers.values())

    def lay(self, point: TapPoint) -> Take:
        """No buffer: the states as they are, from a plain hook. To be called with them outside any graph."""

        def take(states: torch.Tensor, added: torch.Tensor | None) -> None:
            self._loose[point] = states if added is None else states + added

        return take

    def place(self, point: TapPoint, width: int) -> Take:
        """A buffer for the tap point, and what is to be called with its states inside the model."""
        number = self._numbers[point] = len(_BUFFERS)
        _BUFFERS[number] = torch.zeros((self._rows, width), device=self._device, dtype=self._dtype)
        keep, mark = _operator(), self._mark

        def take(states: torch.Tensor, added: torch.Tensor | None) -> None:
            keep(states, added, mark, number)

        return take

    def clear(self, rows: int) -> None:
        """Before a step: what is not written in it must not look like states of it.

        On a device only at every 64th step: each launch costs the engine's thread 20 us, and a graph without the operator
        stays without it.
        """
        self._loose.clear()
        self._steps += 1
        if self._device.type != "cpu" and self._steps % _CLEARED_STEPS:
            return
        for number in self._numbers.values():
            _BUFFERS[number][:rows, 0].fill_(float("nan"))

    def mark(self, rows: int) -> None:
        """Before a trial: a number that no model makes."""
        self._loose.clear()
        for number in self._numbers.values():
            _BUFFERS[number][:rows].fill_(_MARK)

    def written(self, rows: int) -> set[TapPoint]:
        """Which tap points were written to since ``mark``, in every one of the rows. Waits for the device."""
        buffers = {point: _BUFFERS[number][:rows] for point, number in self._numbers.items()}
        kept = torch.tensor(_MARK, dtype=self._dtype, device=self._device)
        return {*self._loose, *(point for point, rows in buffers.items() if not bool((rows == kept).all(dim=1).any()))}

    def read(self, rows: int) -> dict[TapPoint, torch.Tensor]:
        """[rows, width] of each tap point that was written to in this step.

        A device is not waited for: there, a graph without the operator shows as states that are no numbers, which the sidecar
        refuses.
        """
        found = {point: _BUFFERS[number][:rows] for point, number in self._numbers.items()}
        return self._loose | {point: states for point, states in found.items() if not _unwritten(states)}


def _unwritten(states: Any) -> bool:
    return bool(states.is_cpu and torch.isnan(states[:, 0]).all())
