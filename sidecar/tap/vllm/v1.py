"""vLLM's first runner: what runs on CPUs, and on GPUs where the second cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sidecar.tap.vllm.watch import Rows, States, StepWatch
from sidecar.types import TapPoint


def wrap(runner: Any, watch: StepWatch) -> None:
    """Put the watch around the methods of this one runner. ``_model_forward`` runs once a step, and not for ``_dummy_run``.

    Whatever is looked at is looked at by the watch, which survives what it finds.
    """
    update, forward, sample = runner._update_states, runner._model_forward, runner.sample_tokens  # noqa: SLF001 - no other way in

    def update_states(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        watch.follow(scheduled)
        return update(scheduled, *args, **kwargs)

    def model_forward(*args: Any, **kwargs: Any) -> Any:
        watch.before(lambda: _rows(runner, watch.drafts))
        output = forward(*args, **kwargs)
        watch.after(lambda: _states(output, watch.auxiliary))
        return output

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        output = sample(*args, **kwargs)
        watch.sampled(lambda: _sampled(output))
        return output

    runner._update_states = update_states  # noqa: SLF001
    runner._model_forward = model_forward  # noqa: SLF001
    if runner.speculative_config is not None:
        runner.sample_tokens = sample_tokens


@contextmanager
def overheard(runner: Any) -> Iterator[list[torch.Tensor]]:
    """The auxiliary states of what the runner runs meanwhile, a warm-up too: the model returns them, from a graph or not."""
    heard: list[torch.Tensor] = []
    model = runner.model

    class Model:  # stands in for the model, whatever it is wrapped in
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = model(*args, **kwargs)
            heard[:] = output[1] if isinstance(output, tuple) else ()
            return output

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    runner.model = Model()
    try:
        yield heard
    finally:
        runner.model = model


def _rows(runner: Any, drafts: Mapping[str, int]) -> Rows:
    """From the host's copies: no device is waited for. Copied, since the runner goes on writing to them."""
    batch = runner.input_batch
    count = batch.num_reqs
    return Rows(
        list(batch.req_ids[:count]),
        runner.query_start_loc.np[: count + 1].tolist(),
        batch.num_computed_tokens_cpu[:count].tolist(),
        drafts,
    )


def _states(output: Any, points: tuple[TapPoint, ...]) -> States:
    """The auxiliary states come in the order of the blocks."""
    if not points or not isinstance(output, tuple):
        return {}
    return dict(zip(points, output[1], strict=True))


def _sampled(output: Any) -> dict[str, list[int]]:
    ids, tokens = getattr(output, "req_ids", None), getattr(output, "sampled_token_ids", None)
    return dict(zip(ids, tokens, strict=True)) if ids and tokens else {}
