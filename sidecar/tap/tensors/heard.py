"""The states that came at each tap point in a self-test, held against what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from sidecar.tap.trial import Finding, Findings, Outcome
from sidecar.types import TapPoint


class Wanted(NamedTuple):
    """Of a tap point's states: how many rows, and how wide each is. width 0: nothing says it beforehand."""

    rows: int
    width: int


class Heard:
    """Takes the states of one forward pass. They are not kept, and no device is waited for until ``findings``."""

    def __init__(self, wanted: Mapping[TapPoint, Wanted]) -> None:
        self._wanted = wanted
        self._faults: dict[TapPoint, str] = {}  # one for each that came; empty: as it should be
        self._finite: dict[TapPoint, torch.Tensor] = {}

    def take(self, point: TapPoint, states: Any) -> None:
        """[..., D], any leading shape. A block that runs twice counts as it was left."""
        self._faults[point] = _fault(states, self._wanted[point])
        if not self._faults[point]:
            self._finite[point] = states.detach().isfinite().all()

    def findings(self) -> Findings:
        """Of every tap point that was wanted."""
        return {point: _finding(self._why(point)) for point in self._wanted}

    def _why(self, point: TapPoint) -> str:
        fault = self._faults.get(point, "no states came: what is there does not run")
        return fault or ("" if bool(self._finite[point]) else "states that are not finite")


def _finding(why: str) -> Finding:
    return Finding(Outcome.REFUSED, why) if why else Finding(Outcome.CAME)


def _fault(states: Any, wanted: Wanted) -> str:
    if not isinstance(states, torch.Tensor) or states.ndim < 2 or not states.is_floating_point():
        return "what came is no rows of numbers"
    width = int(states.shape[-1])
    rows = states.numel() // max(1, width)
    if wanted.width not in (0, width):
        return f"rows of width {width}, where the model's are {wanted.width} wide"
    return "" if rows == wanted.rows else f"{rows} rows for {wanted.rows} tokens"
