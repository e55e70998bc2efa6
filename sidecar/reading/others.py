"""Whoever else multiplies: other processes that take tap points off this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan, TapPlan
from sidecar.snapshot import ShardSnapshot
from sidecar.types import ElementType, FloatArray

Answer: TypeAlias = Callable[[], FloatArray | None]
"""Waits for the readings [R, K] and gives them; None if they were not there in time."""


class Others(Protocol):
    """They multiply, and do nothing else: what readings mean is judged here. Used by one thread. ``stop`` twice is fine."""

    def bind(self, plan: Plan, kernels: Kernels) -> None:
        """Deal out the plan's tap points. ``kernels`` is bound to it already, and multiplies what comes back undone."""

    def begin(self, until_s: float) -> None:
        """A step begins; its answers are waited for until then, by the clock's monotonic_s."""

    def ask(self, tap_plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType) -> Answer | None:
        """Let somebody multiply hidden states [R, D], which are copied; None if they are to be multiplied here."""

    def counts(self) -> ShardSnapshot: ...

    def stop(self) -> None: ...


class Nobody:
    """Everything is multiplied here."""

    def bind(self, plan: Plan, kernels: Kernels) -> None: ...

    def begin(self, until_s: float) -> None: ...

    def ask(self, tap_plan: TapPlan, values: npt.NDArray[Any], dtype: ElementType) -> Answer | None:
        del tap_plan, values, dtype
        return None

    def counts(self) -> ShardSnapshot:
        return ShardSnapshot()

    def stop(self) -> None: ...


NOBODY = Nobody()
