"""Before the first request: whether every tap point gives states, the way it is tapped, in the model as it was compiled."""

from __future__ import annotations

import logging
from typing import Any, Self

import torch

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
    with _Overheard(runner) as overheard:
        runner._dummy_run(_ROWS)  # noqa: SLF001 - made-up tokens, that belong to nobody: as the engine itself warms up
    handed = overheard.states(watch.auxiliary)
    return {point for point, states in handed.items() if states.shape[0] >= _ROWS} | watch.shelf.written(_ROWS)


class _Overheard:
    """The model's output, as its runner gets it."""

    def __init__(self, runner: Any) -> None:
        self._runner, self._model = runner, runner.model
        self.output: Any = None

    def __enter__(self) -> Self:
        overheard, model = self, self._model

        class Model:  # stands in for the model, whatever it is wrapped in
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                overheard.output = model(*args, **kwargs)
                return overheard.output

            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

        self._runner.model = Model()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.model = self._model

    def states(self, points: tuple[TapPoint, ...]) -> dict[TapPoint, torch.Tensor]:
        output = self.output
        return dict(zip(points, output[1], strict=True)) if points and isinstance(output, tuple) else {}
