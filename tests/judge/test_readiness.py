"""A signal of the prompt waits for all of it, also where it is an encoder that reads it and its rows come in pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probes.manifest import TokenSpan
from sidecar.judge.readiness import Readiness
from sidecar.types import Phase
from tests.builders import TAP, make_signal
from tests.reading.plans import batch_of, tensor_of


@pytest.mark.parametrize(
    ("phase", "ready"), [(Phase.PREFILL, False), (Phase.ENCODER, False), (Phase.DECODE, True), (Phase.TIMESTEP, True)]
)
def test_rows_that_are_not_the_prompts_last_judge_no_signal_of_the_prompt(phase: Phase, ready: bool) -> None:
    readiness = Readiness([make_signal(span=TokenSpan.PROMPT), make_signal(span=TokenSpan.ALL, window=1)])
    batch = batch_of(tensor_of(TAP, np.zeros((3, 4))), rows=(3,), phase=phase)
    counts = np.full((1, 2), 3, dtype=np.int32)
    for prompt, complete in ((4, ready), (3, True)):
        segments = replace(batch.segments, prompt_tokens=np.array([prompt]))
        assert readiness.of(replace(batch, segments=segments), counts).tolist() == [[complete, True]]
