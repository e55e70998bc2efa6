"""Which signals have read enough of a request to be judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.manifest import TokenSpan
from sidecar.judge.kinds import CountArray
from sidecar.reading.plan import Signal
from sidecar.types import BoolArray, Phase, StepBatch


class Readiness:
    """Thresholds belong to whole requests, so no signal is judged on its first rows.

    A signal of the prompt waits until the prompt is complete, any other until it has as many readings as its window.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._prompt_only = np.array([signal.span is TokenSpan.PROMPT for signal in signals], dtype=np.bool_)
        self._any_prompt_only = bool(self._prompt_only.any())
        windows = np.array([max(1, signal.window) for signal in signals], dtype=np.int32)
        self._least = np.where(self._prompt_only, np.int32(1), windows)  # readings before a signal is judged

    def of(self, batch: StepBatch, counts: CountArray) -> BoolArray:
        """Whether each signal is to be judged, bool [G, S]; counts [G, S]: readings so far of the step's requests."""
        ready: BoolArray = counts >= self._least
        if self._any_prompt_only:
            segments = batch.segments
            newest = segments.positions[segments.starts + segments.rows - 1].astype(np.int64)
            beyond = (segments.phases != Phase.PREFILL) & (segments.phases != Phase.ENCODER)
            complete = beyond | (newest + 1 >= segments.prompt_tokens)
            ready &= complete[:, None] | ~self._prompt_only
        return ready
