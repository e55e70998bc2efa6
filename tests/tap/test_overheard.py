"""What vLLM's runners hand out in a trial, and that they are left as they were. The runners are stubs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sidecar.tap.vllm import v1, v2


class Model:
    name = "the model"

    def __init__(self, states: list[torch.Tensor]) -> None:
        self._states = states

    def __call__(self) -> Any:
        return torch.zeros(4, 2), self._states


def test_what_a_model_returns_is_overheard_and_the_runner_has_its_own_model_again() -> None:
    states = [torch.ones(4, 2)]
    runner = SimpleNamespace(model=Model(states))
    own = runner.model
    with v1.overheard(runner) as heard:
        assert runner.model.name == "the model"
        runner.model()
    assert heard == states
    assert runner.model is own


def test_what_a_replayed_graph_leaves_for_the_sampler_is_overheard_though_no_model_is_called() -> None:
    states = [torch.ones(4, 2)]
    runner = SimpleNamespace(execute_model_state=None)

    def execute_model() -> None:
        runner.execute_model_state = SimpleNamespace(aux_hidden_states=states)

    runner.execute_model = execute_model
    with v2.overheard(runner) as heard:
        runner.execute_model()
        runner.execute_model_state = None  # as a warm-up leaves it
    assert heard == states
    assert runner.execute_model is execute_model


def test_a_step_that_hands_out_nothing_is_overheard_as_nothing() -> None:
    runner = SimpleNamespace(execute_model_state=SimpleNamespace(aux_hidden_states=None), execute_model=lambda: None)
    with v2.overheard(runner) as heard:
        runner.execute_model()
    assert heard == []
