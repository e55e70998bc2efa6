"""Stand-ins for vLLM's two runners, in as much as a tap looks at them: their methods in a step's order, and what they leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

SAMPLED = "sampled"
Where = Mapping[str, tuple[int, int]]  # of each request of a step: how many rows, from which position on


def new(name: str, prompt: int, **asked: Any) -> Any:
    sampling = SimpleNamespace(extra_args=asked or None, max_tokens=100)
    return SimpleNamespace(req_id=name, prompt_len=prompt, sampling_params=sampling, lora_request=None)


def scheduled(
    rows: int, news: Iterable[Any] = (), finished: Iterable[str] = (), drafts: Mapping[str, list[int]] | None = None
) -> Any:
    """What the scheduler says of a step."""
    return SimpleNamespace(
        total_num_scheduled_tokens=rows,
        scheduled_new_reqs=list(news),
        finished_req_ids=set(finished),
        scheduled_spec_decode_tokens=dict(drafts or {}),
    )


def _starts(where: Where) -> Any:
    return np.concatenate([[0], np.cumsum([count for count, _ in where.values()])]).astype(np.int32)


class FirstRunner:
    """states: what the model hands out at every step, [rows, width] of each tap point."""

    def __init__(self, states: list[torch.Tensor], *, speculates: bool = False) -> None:
        self.states = states
        self.speculative_config = object() if speculates else None
        self.input_batch: Any = SimpleNamespace()
        self.query_start_loc: Any = SimpleNamespace()
        self.output: Any = SAMPLED

    def step(self, told: Any, where: Where) -> Any:
        self._update_states(told)
        self.fill(where)
        self._model_forward()
        return self.sample_tokens(None)

    def again(self, told: Any) -> None:
        """The same requests, each one position further."""
        self._update_states(told)
        self._model_forward()
        self.input_batch.num_computed_tokens_cpu += 1

    def fill(self, where: Where) -> None:
        """What the runner writes down of a step before its pass."""
        self.input_batch.num_reqs = len(where)
        self.input_batch.req_ids = list(where)
        self.input_batch.num_computed_tokens_cpu = np.array([first for _, first in where.values()])
        self.query_start_loc.np = _starts(where)

    def _update_states(self, _told: Any) -> None:
        return None

    def _model_forward(self) -> Any:
        return None, self.states

    def sample_tokens(self, _grammar: Any) -> Any:
        return self.output


class SecondRunner:
    """states: as above."""

    def __init__(self, states: list[torch.Tensor]) -> None:
        self.states = states
        self.execute_model_state: Any = None
        self.input_batch: Any = SimpleNamespace()

    def step(self, told: Any, where: Where) -> Any:
        self.finish_requests(told)
        self.input_batch.num_reqs = len(where)
        self.input_batch.req_ids = list(where)
        self.input_batch.num_computed_tokens_np = np.array([first for _, first in where.values()])
        self.input_batch.query_start_loc_np = _starts(where)
        self.input_batch.num_draft_tokens_per_req = None
        self.prepare_inputs(told)
        self.execute_model_state = SimpleNamespace(aux_hidden_states=self.states)
        return self.sample_tokens(None)

    def finish_requests(self, _told: Any) -> None:
        return None

    def prepare_inputs(self, _told: Any) -> Any:
        return self.input_batch

    def sample_tokens(self, _grammar: Any) -> Any:
        self.execute_model_state = None
        return SAMPLED


Runner = FirstRunner | SecondRunner
