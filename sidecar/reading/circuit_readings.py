"""What circuits read of one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.reading.block import Block
from sidecar.reading.canary import fingerprint
from sidecar.reading.plan import TapPlan
from sidecar.reading.products import to_float32
from sidecar.types import BoolArray, ElementType, FloatArray, Segments, TapPoint


@dataclass(slots=True)
class CircuitReadings:
    """Filled tap point by tap point while a step is read; a tap point that was not read in full is not among ``read``.

    A row whose reading is of no use (it overflows) is NaN; what was not read at all is NaN, too.
    """

    values: FloatArray  # [T, places]
    canaries: BoolArray | None  # [T], rows of canaries; None if there are none
    read: set[TapPoint] = field(default_factory=set)
    fingerprints: dict[TapPoint, FloatArray] = field(default_factory=dict)  # [canary rows, 64], where states were sent

    @classmethod
    def of(cls, places: int, segments: Segments) -> CircuitReadings:
        canaries = None
        if any(segments.canaries):
            canaries = np.repeat(np.array(segments.canaries), segments.rows)
        return cls(np.full((segments.token_count, places), np.nan, np.float32), canaries)

    def put(self, tap: TapPlan, block: Block) -> None:
        """The readings of all rows at one tap point. A column that was not read (another plan's) leaves it out as a whole."""
        columns = tap.circuits
        assert columns is not None
        if block.there is not None and not block.there[columns.here.start :].all():
            return
        self.values[:, columns.places] = block.readings[:, columns.here]
        for head, place in columns.lengths:
            self.values[:, place] = _lengths(block.readings[:, head])
        if columns.norm is not None and block.norms is not None:
            self.values[:, columns.norm] = block.norms
        if block.finite is not None:
            stop = max([columns.places.stop, *(1 + place for _, place in columns.lengths), (columns.norm or 0) + 1])
            self.values[~block.finite, columns.places.start : stop] = np.nan
        self.read.add(tap.tap_point)

    def put_raw(self, tap: TapPlan, block: Block, values: npt.NDArray[Any], dtype: ElementType) -> None:
        """The same with the hidden states [T, D] at hand, which are not kept."""
        columns = tap.circuits
        if columns is not None and columns.norm is not None:
            block = Block(block.readings, block.finite, block.there, _lengths(to_float32(values, dtype)))
        self.put(tap, block)
        if self.canaries is not None:
            rows = to_float32(values[self.canaries], dtype)
            self.fingerprints[tap.tap_point] = fingerprint(tap.tap_point, rows)


def _lengths(rows: FloatArray) -> FloatArray:
    """[R], squared lengths."""
    made: FloatArray = np.einsum("rd,rd->r", rows, rows)
    return made
