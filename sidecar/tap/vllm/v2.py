"""vLLM's second runner: the default on GPUs. Its schedule is one object a step; its states wait until the tokens are sampled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sidecar.tap.vllm.watch import Rows, States, StepWatch
from sidecar.types import TapPoint


def drives(runner: Any) -> bool:
    """Whether it is a second runner."""
    return type(runner).__module__.startswith("vllm.v1.worker.gpu.")


def wrap(runner: Any, watch: StepWatch) -> None:
    """Put the watch around the methods of this one runner. ``prepare_inputs`` runs once a step, and not for ``_dummy_run``.

    Whatever is looked at is looked at by the watch, which survives what it finds.
    """
    prepare, sample, finish = runner.prepare_inputs, runner.sample_tokens, runner.finish_requests

    def finish_requests(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        watch.follow(scheduled)  # first thing in a step, also in one without rows
        return finish(scheduled, *args, **kwargs)

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = prepare(*args, **kwargs)
        watch.before(lambda: _rows(batch))
        return batch

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        watch.after(lambda: _states(runner.execute_model_state, watch.auxiliary))
        return sample(*args, **kwargs)

    runner.finish_requests = finish_requests
    runner.prepare_inputs = prepare_inputs
    runner.sample_tokens = sample_tokens


@contextmanager
def overheard(runner: Any) -> Iterator[list[torch.Tensor]]:
    """The auxiliary states of what the runner runs meanwhile, a warm-up too.

    As they are left for the sampler: a graph of the whole step is replayed without the model being called.
    """
    heard: list[torch.Tensor] = []
    execute = runner.execute_model

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        output = execute(*args, **kwargs)
        state = runner.execute_model_state
        heard[:] = () if state is None else state.aux_hidden_states or ()
        return output

    runner.execute_model = execute_model
    try:
        yield heard
    finally:
        runner.execute_model = execute


def _rows(batch: Any) -> Rows:
    count = batch.num_reqs
    drafts = batch.num_draft_tokens_per_req
    return Rows(
        list(batch.req_ids[:count]),
        batch.query_start_loc_np[: count + 1].tolist(),
        batch.num_computed_tokens_np[:count].tolist(),
        {} if drafts is None else {name: int(n) for name, n in zip(batch.req_ids, drafts, strict=False) if n},
    )


def _states(state: Any, points: tuple[TapPoint, ...]) -> States:
    """state: what the pass left for the sampler. The auxiliary states come in the order of the blocks."""
    handed = state.aux_hidden_states if points else None
    return {} if handed is None else dict(zip(points, handed, strict=True))
