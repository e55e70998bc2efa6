"""From scores to probabilities: a line through a sigmoid for most signals, a table for those calibrated by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from probes.isotonic import along
from sidecar.judge.kinds import DoubleArray
from sidecar.reading.plan import Signal
from sidecar.types import FloatArray, IndexArray

_Floats = TypeVar("_Floats", DoubleArray, FloatArray)


def sigmoid(z: _Floats) -> _Floats:
    """1 / (1 + exp(-z)), without overflow for any finite z; float32 for float32."""
    halved: _Floats = np.tanh(0.5 * z)
    halved += 1.0
    halved *= 0.5
    return halved


class Calibrations:
    """Of S signals. What is compared with thresholds first is a line of the score, and for a table the score itself.

    `Thresholds.near` is told in the same numbers. So a step costs nothing more for tables but where a score comes near.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._scale = np.array([signal.scale for signal in signals])
        self._offset = np.array([signal.offset for signal in signals])
        # For histograms: their bins are 9 % wide, and float32 takes a third of the time.
        self._scale32, self._offset32 = self._scale.astype(np.float32), self._offset.astype(np.float32)
        self._tables = {i: np.array(signal.knots) for i, signal in enumerate(signals) if signal.knots}

    def lines(self, scores: DoubleArray) -> DoubleArray:
        """Of scores [..., S]."""
        made: DoubleArray = scores * self._scale + self._offset
        return made

    def probabilities(self, lines: DoubleArray, signals: IndexArray) -> DoubleArray:
        """Of the lines [n] of these signals [n]; a table's to the last digit what the lab made of the score."""
        made = sigmoid(lines)
        for signal, knots in self._tables.items():
            here = signals == signal
            made[here] = along(knots, lines[here])
        return made

    def of_tokens(self, readings: FloatArray) -> FloatArray:
        """Probabilities [T, S] of single readings, for histograms."""
        made = sigmoid(readings * self._scale32 + self._offset32)
        for signal, knots in self._tables.items():
            made[:, signal] = along(knots, readings[:, signal])
        return made
