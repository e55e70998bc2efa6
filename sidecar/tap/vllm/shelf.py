"""Buffers that the model's own graph writes its states to, and the operator that does it.

To ``torch.compile`` the operator is opaque: it is called at every step. In a CUDA graph its copy is a part of the graph, from and
to memory that stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch

from sidecar.tap.faults import Faults
from sidecar.types import TapPoint

_MARK = -12345.0
Take = Callable[[torch.Tensor, torch.Tensor | None], None]  # states [..., D], and what is to be added to them
_TAKERS: list[Take] = []  # of this process: an operator can be given numbers and tensors, and nothing else


@cache
def _operator() -> Callable[..., None]:
    @torch.library.custom_op("stethoscope::keep", mutates_args=("mark",))
    def keep(states: torch.Tensor, added: torch.Tensor | None, mark: torch.Tensor, number: int) -> None:  # noqa: ARG001 - see below
        """``mark`` is said to be written to, or a compiler would leave the call out: nobody uses what it returns."""
        _TAKERS[number](states, added)

    keep.register_fake(lambda states, added, mark, number: None)  # noqa: ARG005 - torch calls it by these names
    operator: Callable[..., None] = torch.ops.stethoscope.keep
    return operator


class Shelf:
    """One buffer a tap point, [the most rows of a step, width], in the model's own type. ``nbytes`` is what they hold for good.

    widths: of the tap points with a buffer. They lie in one arena, its columns those of the widest, so that all are marked at
    once. deaf: nothing is kept, and the graph is the same: for ranks whose states another one has.
    """

    def __init__(
        self, rows: int, widths: Mapping[TapPoint, int], device: torch.device, dtype: torch.dtype, *, deaf: bool = False
    ) -> None:
        self.faults = Faults()
        self._deaf = deaf
        kept = {} if deaf else widths
        self._arena = torch.zeros((len(kept), rows, max(kept.values(), default=1)), device=device, dtype=dtype)
        self._buffers = {point: self._arena[place, :, :width] for place, (point, width) in enumerate(kept.items())}
        self._never = torch.zeros(1, device=device)  # the operator says that it writes to it
        self._loose: dict[TapPoint, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes

    def lay(self, point: TapPoint) -> Take:
        """No buffer: the states as they are, from a plain hook. To be called with them outside any graph."""
        return self._harmless(partial(self._lay, point))

    def place(self, point: TapPoint) -> Take:
        """What is to be called with the states of a tap point inside the model, so that they come to lie in its buffer."""
        number, keep, never = len(_TAKERS), _operator(), self._never
        _TAKERS.append(self._harmless(partial(_write, self._buffers.get(point))))

        def take(states: torch.Tensor, added: torch.Tensor | None) -> None:
            keep(states, added, never, number)

        return take

    def clear(self, rows: int) -> None:
        """Before every step: what is not written in it must not look like states of it. On a device one launch, for all."""
        self._loose.clear()
        if self._buffers:
            self._arena[:, :rows, 0].fill_(float("nan"))

    def mark(self, rows: int) -> None:
        """Before a trial: a number that no model makes."""
        self._loose.clear()
        self._arena[:, :rows].fill_(_MARK)

    def written(self, rows: int) -> set[TapPoint]:
        """Which tap points were written to since ``mark``, in every one of the rows. Waits for the device."""
        kept = torch.tensor(_MARK, dtype=self._arena.dtype, device=self._arena.device)
        found = {point: buffer[:rows] == kept for point, buffer in self._buffers.items()}
        return {*self._loose, *(point for point, marked in found.items() if not bool(marked.all(dim=1).any()))}

    def read(self, rows: int) -> dict[TapPoint, torch.Tensor]:
        """[rows, width] of each tap point that was written to in this step.

        A device is not waited for: there, a graph without the operator shows as states that are no numbers, which the sidecar
        refuses.
        """
        found = {point: buffer[:rows] for point, buffer in self._buffers.items()}
        return self._loose | {point: states for point, states in found.items() if not _unwritten(states)}

    def _lay(self, point: TapPoint, states: torch.Tensor, added: torch.Tensor | None) -> None:
        if not self._deaf:
            self._loose[point] = states if added is None else states + added

    def _harmless(self, take: Take) -> Take:
        """It runs inside the model: what it raises is counted, and the tap point is one that was not written to."""

        def harmless(states: torch.Tensor, added: torch.Tensor | None) -> None:
            try:
                take(states, added)
            except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the model
                self.faults.note("inside_forward", error)

        return harmless


def _write(buffer: torch.Tensor | None, states: torch.Tensor, added: torch.Tensor | None) -> None:
    if buffer is None:
        return
    flat = states.reshape(-1, states.shape[-1])
    into = buffer[: flat.shape[0]]
    if added is None:
        into.copy_(flat)
    else:
        torch.add(flat, added.reshape(flat.shape), out=into)


def _unwritten(states: Any) -> bool:
    return bool(states.is_cpu and torch.isnan(states[:, 0]).all())
