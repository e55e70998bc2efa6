"""Drives the tap of vLLM's second runner through its real data classes, and prints as JSON what was captured.

The runner itself needs Triton and a GPU: a stub stands for it, which does with the real classes what the real one does.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import vllm
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_runner import ExecuteModelState, GPUModelRunner

from sidecar.tap.vllm import v2
from sidecar.tap.vllm.shelf import Shelf
from sidecar.tap.vllm.watch import StepWatch
from sidecar.tap.wire import Settings
from sidecar.types import SamplingPolicy, TapPoint

POINTS = (TapPoint(1), TapPoint(3))
WIDTH = 16


class Client:
    """Takes steps as the real one does, and keeps them."""

    off = congested = False
    connected = True
    plan = None
    settings = Settings(1, SamplingPolicy(1.0), POINTS)
    policy = settings.policy

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.finished: list[str] = []
        self.tallies: list[Any] = []
        self.traffic = SimpleNamespace(add=self.tallies.append)

    def submit(self, step: Any) -> bool:
        self.steps.append(step)
        return True

    def finish(self, ids: Any) -> None:
        self.finished.extend(ids)

    def forgo(self, tokens: int) -> None:
        raise AssertionError(tokens)


class Runner:
    """What the real runner does with its own classes, in the same order."""

    execute_model_state: Any = None

    def finish_requests(self, _scheduled: Any) -> None:
        return None

    def prepare_inputs(self, _scheduled: Any, batch: InputBatch) -> InputBatch:
        return batch

    def sample_tokens(self, _grammar: Any) -> str:
        self.execute_model_state = None
        return "sampled"

    def step(self, scheduled: Any, batch: InputBatch | None, states: list[torch.Tensor]) -> None:
        self.finish_requests(scheduled)
        if batch is None:
            return
        made = self.prepare_inputs(scheduled, batch)
        rest = dict.fromkeys(ExecuteModelState._fields)
        self.execute_model_state = ExecuteModelState(**{**rest, "input_batch": made, "aux_hidden_states": states})
        assert self.sample_tokens(None) == "sampled"


def new(name: str, prompt: int, computed: int = 0, lora: LoRARequest | None = None, **asked: Any) -> NewRequestData:
    sampling = SamplingParams(max_tokens=8, extra_args=asked or None)
    return NewRequestData(name, list(range(prompt)), [], sampling, None, ([],), computed, lora)


def scheduled(*news: NewRequestData, finished: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        scheduled_new_reqs=list(news),
        finished_req_ids=set(finished),
        scheduled_spec_decode_tokens={},
        total_num_scheduled_tokens=0,
    )


def batch(rows: dict[str, tuple[int, int]], drafts: dict[str, int] | None = None) -> InputBatch:
    """A real batch of so many rows from such a position for each request."""
    counts = [count for count, _ in rows.values()]
    made = InputBatch.make_dummy(len(rows), sum(counts), InputBuffers(8, 64, torch.device("cpu")))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    told = None if drafts is None else np.array([drafts.get(name, 0) for name in rows], dtype=np.int32)
    return dataclasses.replace(
        made,
        req_ids=list(rows),
        query_start_loc_np=starts,
        num_computed_tokens_np=np.array([first for _, first in rows.values()]),
        num_draft_tokens_per_req=told,
    )


def states(rows: int, step: int) -> list[torch.Tensor]:
    """Of each tap point; an element says which step and row it is."""
    return [1000.0 * step + torch.arange(rows).float()[:, None].repeat(1, WIDTH) + 0.25 * place for place in range(2)]


def captured(step: Any) -> dict[str, Any]:
    return {
        "segments": [[one.wire_id, list(one.positions), one.phase.name, one.prompt_tokens] for one in step.segments],
        "rows": {point.name: kept.rows[:, 0].tolist() for point, kept in step.tensors},
        "info": [[one.info.traceparent, one.info.adapter] for one in step.segments],
    }


def main(*, ahead: bool) -> dict[str, Any]:
    client, runner = Client(), Runner()
    watch = StepWatch(client, Shelf(64, {}, torch.device("cpu"), torch.float32), guesses_told=False, ahead=ahead)  # type: ignore[arg-type]
    watch.auxiliary = watch.points = POINTS
    v2.wrap(runner, watch)
    lora = LoRARequest("sql", 1, "/nowhere")
    one, two = "cmpl-one-0-0123abcd", "cmpl-two-0-0123abce"
    # a chunk of a prompt, and another whose first 4 tokens the prefix cache had
    runner.step(
        scheduled(new(one, 5), new(two, 6, 4, lora, traceparent="00-a-b-01")),
        batch({one: (3, 0), two: (2, 4)}),
        states(5, 1),
    )
    runner.step(scheduled(), batch({two: (1, 6), one: (2, 3)}), states(3, 2))
    # a preempted request comes as a new one, and computes what it had again
    runner.step(scheduled(new(two, 6)), batch({two: (8, 0)}), states(8, 3))
    # drafts: two guessed rows behind a certain one; then the scheduler goes on from where they were right
    runner.step(scheduled(), batch({one: (3, 5)}, {one: 2}), states(3, 4))
    runner.step(scheduled(finished=(two,)), batch({one: (1, 7)}), states(1, 5))
    runner.step(scheduled(finished=(one,)), None, [])
    return {
        "steps": [captured(step) for step in client.steps],
        "finished": client.finished,
        "tokens": [tally.tokens for tally in client.tallies],
        "unseen": [{reason.value: n for reason, n in tally.unseen.items()} for tally in client.tallies],
        "errors": watch.faults.counts(),
        "methods": [hasattr(GPUModelRunner, name) for name in ("finish_requests", "prepare_inputs", "sample_tokens")],
    }


if __name__ == "__main__":
    print(json.dumps({"vllm": vllm.__version__, "behind": main(ahead=False), "ahead": main(ahead=True)}))
