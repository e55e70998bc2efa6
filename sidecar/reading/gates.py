"""Which rows a signal may read: its token span, beyond the positions that it skips."""

from __future__ import annotations

import numpy as np

from probes.manifest import TokenSpan
from sidecar.reading.plan import Plan
from sidecar.types import BoolArray, Phase, Segments

# What an encoder reads is the prompt, as much as what a decoder is given to go on from.
PHASES = {TokenSpan.PROMPT: (Phase.PREFILL, Phase.ENCODER), TokenSpan.GENERATED: (Phase.DECODE,)}


def open_gates(plan: Plan, segments: Segments) -> BoolArray | None:
    """[T, S], or None if every signal may read every row, as in most decode steps."""
    made = np.empty((segments.token_count, len(plan.gates)), dtype=np.bool_)
    one_row_each = len(segments) == segments.token_count
    phases = segments.phases if one_row_each else np.repeat(segments.phases, segments.rows)
    for i, (span, skip) in enumerate(plan.gates):
        np.greater_equal(segments.positions, skip, out=made[:, i])
        if span in PHASES:
            made[:, i] &= np.logical_or.reduce([phases == phase for phase in PHASES[span]])
    return None if made.all() else made.take(plan.gate_of, axis=1)
