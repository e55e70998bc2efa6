"""The rows of one request, from its first step to its end, and what is missing of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.states_file import first_not_finite
from sidecar.types import ElementType, PositionArray, StepBatch, TapPoint, UnseenReason

_Layers = tuple[npt.NDArray[Any], ...]


class NeverWholeError(Exception):
    """What this engine sends cannot be recorded as it is asked for; asking again would change nothing. The text says why."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """All rows of a request. bits: [T, layers, D], little-endian as they were sent."""

    bits: npt.NDArray[Any]
    dtype: ElementType


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows are missing, and why as far as anybody has said; in words."""

    why: str


class Rows:
    """Of one request, filled step by step; used by one thread at a time. points: the layers, in the order of the file."""

    def __init__(self, points: Sequence[TapPoint]) -> None:
        self.held_bytes = 0
        self.prompt_tokens = 0  # as the engine says; 0: not yet
        self._points = tuple(points)
        self._pieces: list[tuple[PositionArray, _Layers]] = []
        self._unseen: dict[UnseenReason, int] = {}
        self._seen: set[int] = set()
        self._dtype: ElementType | None = None
        self._never = ""

    def add(self, batch: StepBatch, segment: int, unseen: Mapping[UnseenReason, int]) -> None:
        """Take a copy of one segment's rows. unseen: what the tap says of tokens before them."""
        for reason, tokens in unseen.items():
            self._unseen[reason] = self._unseen.get(reason, 0) + tokens
        table = batch.segments
        self.prompt_tokens = self.prompt_tokens or int(table.prompt_tokens[segment])
        try:
            dtype, layers = self._layers(batch, segment)
        except NeverWholeError as never:
            self._never = str(never)
            return
        start = int(table.starts[segment])
        positions = table.positions[start : start + int(table.rows[segment])]
        self._dtype = dtype
        self._pieces.append((positions, layers))
        self._seen.update(positions.tolist())
        self.held_bytes += sum(layer.nbytes for layer in layers)

    def covers(self, tokens: int) -> bool:
        """Every position below ``tokens`` has its rows."""
        return len(self._seen) >= tokens and all(position in self._seen for position in range(tokens))

    def result(self, tokens: int) -> Recorded | Gap:
        """The states of the positions below ``tokens``; 0: as many as there are. Comes after ``add``. Raises NeverWholeError."""
        if self._never:
            raise NeverWholeError(self._never)
        wanted = tokens or max(self._seen) + 1
        if not self.covers(wanted):
            return Gap(self._why(wanted))
        return self._stacked(wanted)

    def _layers(self, batch: StepBatch, segment: int) -> tuple[ElementType, _Layers]:
        if batch.segments.adapters and batch.segments.adapters[segment]:
            raise NeverWholeError("an adapter is applied: these are states of another model than the one that is named")
        found = {tensor.tap_point: tensor for tensor in batch.tensors if not tensor.projected}
        missing = [point.name for point in self._points if point not in found]
        if missing:
            raise NeverWholeError(f"the engine does not capture {', '.join(missing)}: {how_to_tap(self._points)}")
        tensors = [found[point] for point in self._points]
        kinds = {(tensor.dtype, tensor.values.shape[1]) for tensor in tensors} | self._kind()
        if len(kinds) > 1:
            told = ", ".join(sorted(f"{columns} columns of {dtype.value}" for dtype, columns in kinds))
            raise NeverWholeError(
                f"one file holds layers of one width and type, and here are {told}: record them apart"
            )
        start = int(batch.segments.starts[segment])
        rows = slice(start, start + int(batch.segments.rows[segment]))
        return tensors[0].dtype, tuple(tensor.values[rows].copy() for tensor in tensors)

    def _kind(self) -> set[tuple[ElementType, int]]:
        return {(self._dtype, self._pieces[0][1][0].shape[1])} if self._dtype is not None else set()

    def _stacked(self, tokens: int) -> Recorded | Gap:
        assert self._dtype is not None
        ((_, width),) = self._kind()
        bits = np.empty((tokens, len(self._points), width), f"<u{self._dtype.storage.itemsize}")
        for positions, layers in self._pieces:
            kept = positions < tokens
            for number, layer in enumerate(layers):
                bits[positions[kept], number] = layer[kept].view(bits.dtype)
        bad = first_not_finite(bits, self._dtype)
        if bad is not None:
            return Gap(f"a state at position {bad} is no finite number")
        return Recorded(bits, self._dtype)

    def _why(self, wanted: int) -> str:
        missing = wanted - sum(position in self._seen for position in range(wanted))
        told = ", ".join(f"{tokens} {reason.value}" for reason, tokens in self._unseen.items())
        return f"{missing} of {wanted} tokens have no rows: {told or 'the tap does not say why'}"


def how_to_tap(points: Sequence[TapPoint]) -> str:
    """What an engine must be started with."""
    return f"start it with STETHOSCOPE_TAP={','.join(point.name for point in points)}"
