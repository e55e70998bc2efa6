"""The plan as it lies on a device, in memory that stays where it is: another plan is written over it between two steps."""

from __future__ import annotations

import torch

from sidecar.tap.plan import FetchedPlan
from sidecar.tap.tensors.projection import Made, multiply
from sidecar.types import TapPoint

_ROOM = 64  # directions: the memory grows by so many, so that a plan with another probe still fits


class Resident:
    """The directions of the tap points that a model's step passes, in that order. One thread and one stream use it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._holds: tuple[FetchedPlan, tuple[TapPoint, ...]] | None = None
        self._columns = 0
        self.memory = torch.empty(0, device=device)  # float32 [room for P, D, room for K]

    def multiply(self, plan: FetchedPlan, points: tuple[TapPoint, ...], first: int, rows: torch.Tensor) -> torch.Tensor:
        """Readings of rows [P, T, D] of the tap points from ``points[first]`` on, on the device, as ``Made`` has them.

        The plan has all the points, and for states of D elements. Queued on the current stream; waits for nothing.
        """
        if self._holds is None or self._holds[0] is not plan or self._holds[1] != points:
            self._load(plan, points)
        count = rows.shape[0]
        made = Made.empty(count, rows.shape[1], self._columns, self._device)
        multiply(rows, self.memory[first : first + count, :, : self._columns], made)
        return made.whole

    def _load(self, plan: FetchedPlan, points: tuple[TapPoint, ...]) -> None:
        """Queued behind the products of the steps before, which had their own plan."""
        directions = [plan.points[point].directions for point in points]  # [D, K] each
        self._holds, self._columns = None, max(one.shape[1] for one in directions)
        self._reserve(len(points), directions[0].shape[0])
        for memory, one in zip(self.memory, directions, strict=False):
            memory[:, : one.shape[1]].copy_(pinned(torch.tensor(one), self._device), non_blocking=True)
        self._holds = (plan, points)

    def _reserve(self, points: int, width: int) -> None:
        room = self.memory.shape
        if len(room) != 3 or room[0] < points or room[1] != width or room[2] < self._columns:
            columns = -(-self._columns // _ROOM) * _ROOM
            self.memory = torch.zeros((points, width, columns), dtype=torch.float32, device=self._device)


def pinned(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Where that device can fetch them from while nobody waits; a CPU has them already."""
    return values if device.type == "cpu" else values.pin_memory()
