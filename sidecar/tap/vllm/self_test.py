"""Before the first request: whether every tap point gives states, the way it is tapped, in the model as it was compiled."""

from __future__ import annotations

import logging
from typing import Any

from sidecar.tap.vllm import v1, v2
from sidecar.tap.vllm.watch import StepWatch
from sidecar.types import TapPoint

log = logging.getLogger("stethoscope.tap")


def self_test(worker: Any) -> None:
    """Run made-up tokens through the model, and say of each tap point whether states came.

    A point that gives none stays tapped: it shows as blind, which is an alert.
    """
    watch: StepWatch | None = getattr(worker, "stethoscope", None)
    if watch is None:
        return
    came = _trial(worker.model_runner, watch)
    for point in watch.points:
        if point in came:
            log.info("self_test tap_point=%s: states come", point.name)
        else:
            log.error(
                "self_test tap_point=%s: no states come; what is computed there will count as not seen", point.name
            )


_ROWS = 4


def _trial(runner: Any, watch: StepWatch) -> set[TapPoint]:
    """The tap points of which the compiled model gave ``_ROWS`` rows. Their values mean nothing: nothing was attended to."""
    watch.shelf.mark(_ROWS)
    with (v2 if v2.drives(runner) else v1).overheard(runner) as heard:
        runner._dummy_run(_ROWS)  # noqa: SLF001 - made-up tokens, that belong to nobody: as the engine itself warms up
    handed = dict(zip(watch.auxiliary, heard, strict=bool(heard)))  # all of them, or nothing at all
    return {point for point, states in handed.items() if states.shape[0] >= _ROWS} | watch.shelf.written(_ROWS)
