"""Before the first request: whether every tap point gives states, the way it is tapped, in the model as it was compiled."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from sidecar.tap.faults import TapRefusedError
from sidecar.tap.vllm import v1, v2
from sidecar.tap.vllm.ranks import Ranks
from sidecar.tap.vllm.watch import StepWatch
from sidecar.types import TapPoint

log = logging.getLogger("stethoscope.tap")

_ROWS = 4
_TAPPED, _NOT_TAPPED = "tapped", "not tapped"


def self_test(worker: Any) -> None:
    """Run made-up tokens through the model, and say of each tap point whether states came.

    A point that gives none stays tapped: it shows as blind, which is an alert. A forward pass is computed by all ranks together,
    data parallel ones too: each of them runs it if any of them is tapped, and none if one of them does not answer.
    """
    from vllm.distributed.parallel_state import get_world_group

    watch: StepWatch | None = getattr(worker, "stethoscope", None)
    if watch is not None:
        watch.shelf.mark(_ROWS)  # what may fail comes before the others are told to go
    try:
        said = Ranks.of(get_world_group()).hear("self_test", _NOT_TAPPED if watch is None else _TAPPED)
    except TapRefusedError as why:
        log.warning("self_test not run: %s; whether states come is not known", why)
        return
    if _TAPPED not in said:
        return
    came = _trial(worker.model_runner, watch)
    if watch is not None:
        _tell(watch, came)


def _tell(watch: StepWatch, came: set[TapPoint]) -> None:
    for point in watch.points:
        if point in came:
            log.info("self_test tap_point=%s: states come", point.name)
        else:
            log.error(
                "self_test tap_point=%s: no states come; what is computed there will count as not seen", point.name
            )


def _trial(runner: Any, watch: StepWatch | None) -> set[TapPoint]:
    """The tap points of which the compiled model gave ``_ROWS`` rows. Their values mean nothing: nothing was attended to."""
    with ExitStack() as stack:
        heard = stack.enter_context((v2 if v2.drives(runner) else v1).overheard(runner)) if watch is not None else []
        runner._dummy_run(_ROWS)  # noqa: SLF001 - made-up tokens, that belong to nobody: as the engine itself warms up
    if watch is None:
        return set()
    handed = dict(zip(watch.auxiliary, heard, strict=bool(heard)))  # all of them, or nothing at all
    return {point for point, states in handed.items() if states.shape[0] >= _ROWS} | watch.shelf.written(_ROWS)
