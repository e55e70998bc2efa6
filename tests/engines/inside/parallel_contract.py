"""Taps workers of parallel deployments, and prints as JSON what each of them takes and what came of one step.

Real are vLLM's configurations, its division of blocks into stages, its stand-ins for other stages' blocks and its interface of
models; the ranks are told and not run, and the runner is a stub.

``python parallel_contract.py MODEL_FOLDER``
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from v2_contract import Client, new, scheduled
from vllm.config import CompilationConfig, CompilationMode, ModelConfig, ParallelConfig
from vllm.distributed import parallel_state
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.interfaces import EagleModelMixin, SupportsEagle3
from vllm.model_executor.models.utils import make_layers

from sidecar.tap.vllm import choice, install, known
from sidecar.tap.vllm.ranks import Ranks
from sidecar.tap.wire import Settings
from sidecar.tap.wish import parse_wish
from sidecar.types import SamplingPolicy, TapPoint

ROWS = 3
ALL = ",".join(TapPoint(layer).name for layer in range(4))


class Told(Client):
    """Takes the place of the tap's client; says who it was made for."""

    def __init__(self, _address: str, identity: Any, *, engine_id: str, **_: Any) -> None:
        super().__init__()
        self.identity, self.engine_id = identity, engine_id
        self.settings = Settings(1, SamplingPolicy(1.0), tuple(TapPoint(layer) for layer in range(4)))
        self.policy = self.settings.policy

    def start(self) -> None:
        return

    def end_soon(self) -> None:
        return


class Unasked(Told):
    """Of a sidecar that wants nothing."""

    def __init__(self, *identity: Any, **more: Any) -> None:
        super().__init__(*identity, **more)
        self.settings = Settings(1, SamplingPolicy(1.0), ())


class Block(nn.Module):
    """As a decoder layer: its output is to be added to the residual. A row of block n comes out as 10 n + 1."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.number = number
        self.self_attn, self.mlp = nn.Module(), nn.Identity()
        self.self_attn.o_proj = nn.Identity()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(rows, 10.0 * self.number), self.scale.expand_as(rows)


class Model(nn.Module, EagleModelMixin, SupportsEagle3):
    """A stage of a model that can hand out its residual stream, where there is only one stage."""

    has_own_lm_head = has_own_embed_tokens = False

    def __init__(self, blocks: int, width: int) -> None:
        nn.Module.__init__(self)
        self.start_layer, self.end_layer, self.layers = make_layers(
            blocks, lambda prefix: Block(int(prefix.rpartition(".")[2]), width), "model.layers"
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[self.start_layer : self.end_layer]:
            layer(rows)
        return rows


class Runner:
    """As vLLM's first runner, in as much as a tap looks at it."""

    device, max_num_tokens = torch.device("cpu"), 16
    speculative_config = None
    use_aux_hidden_state_outputs = False

    def __init__(self, model: Model, width: int) -> None:
        self.model, self._width = model, width
        self.input_batch = SimpleNamespace(
            num_reqs=1, req_ids=["cmpl-one-0-0123abcd"], num_computed_tokens_cpu=np.array([0])
        )
        self.query_start_loc = SimpleNamespace(np=np.array([0, ROWS]))

    def get_model(self) -> Model:
        return self.model

    def _update_states(self, _scheduled: Any) -> None:
        return None

    def _model_forward(self) -> torch.Tensor:
        return self.model(torch.zeros(ROWS, self._width))

    def sample_tokens(self, _grammar: Any) -> None:
        return None


def ranks(tp: tuple[int, int] = (0, 1), pp: tuple[int, int] = (0, 1), others: str = f"+{ALL}") -> None:
    """Say to vLLM which rank this process is, of how many; and to this one what the others say: nothing against the tap."""
    store = torch.distributed.HashStore()
    group = SimpleNamespace(get_group_store=lambda: store)
    parallel_state._TP = SimpleNamespace(rank_in_group=tp[0], world_size=tp[1], cpu_group=group)
    parallel_state._WORLD = SimpleNamespace(rank_in_group=0, world_size=1)
    for other in set(range(tp[1])) - {tp[0]}:
        threading.Thread(target=Ranks(other, tp[1], store).hear, args=("tap_points", others), daemon=True).start()
    parallel_state._PP = SimpleNamespace(
        rank_in_group=pp[0], world_size=pp[1], is_first_rank=pp[0] == 0, is_last_rank=pp[0] == pp[1] - 1
    )


def worker(
    folder: str,
    tp: tuple[int, int],
    pp: tuple[int, int],
    dp: tuple[int, int],
    others: str = f"+{ALL}",
    **parts: Any,
) -> Any:
    """A worker with its part of the model. tp, pp, dp: (its rank, how many there are). parts: into which a step is cut."""
    ranks(tp, pp, others)
    parallel = ParallelConfig(
        tensor_parallel_size=tp[1], pipeline_parallel_size=pp[1], data_parallel_size=dp[1], **parts
    )
    parallel.data_parallel_rank = dp[0]  # as vLLM sets it in each of its cores
    model_config = ModelConfig(model=folder, dtype="float32")
    config = SimpleNamespace(
        model_config=model_config,
        parallel_config=parallel,
        compilation_config=CompilationConfig(mode=CompilationMode.NONE),
        scheduler_config=SimpleNamespace(async_scheduling=False),
    )
    width = model_config.get_hidden_size()
    runner = Runner(Model(model_config.hf_text_config.num_hidden_layers, width), width)
    return SimpleNamespace(model_runner=runner, vllm_config=config)


def tapped(folder: str, wish: str, **places: Any) -> dict[str, Any]:
    """What one worker came to: its engine, its tap points with the way of each, and the rows of one step."""
    made = worker(folder, **{"tp": (0, 1), "pp": (0, 1), "dp": (0, 1), **places})
    install.install(made, parse_wish(wish))
    install.begin(made)
    watch = getattr(made, "stethoscope", None)
    if watch is None:
        return {"tapped": False, "graph": _graph(made)}
    auxiliary = [point.name for point in watch.auxiliary]
    told = {"tapped": True, "graph": _graph(made), "engine": watch.client.engine_id, "auxiliary": auxiliary}
    told["weights"] = watch.client.identity.weights_digest
    if not auxiliary:
        told |= _step(made.model_runner, watch.client)
    return {**told, "points": [point.name for point in watch.points]}


def _graph(made: Any) -> dict[str, Any]:
    """What is another in it than in an untapped one: the blocks whose states it hands out, and how many operators it has."""
    blocks = made.model_runner.model.layers
    hooked = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in blocks.modules())
    return {"auxiliary": list(made.model_runner.model.aux_hidden_state_layers), "operators": hooked}


def _step(runner: Runner, client: Told) -> dict[str, Any]:
    """Of a request to which an adapter is applied."""
    request = new(runner.input_batch.req_ids[0], ROWS, lora=LoRARequest("sql", 1, "/nowhere"))
    runner._update_states(scheduled(request))
    runner._model_forward()
    (step,) = client.steps
    rows = {point.name: kept.rows[:, 0].tolist() for point, kept in step.tensors}
    return {"rows": rows, "adapters": [one.info.adapter for one in step.segments]}


class Said(logging.Handler):
    lines: Sequence[str] = ()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines = [*self.lines, record.getMessage()]


def unknown(folder: str) -> dict[str, Any]:
    """A worker of a vLLM whose runner is another than the tap knows, if only by a word."""
    as_it_is, known.KNOWN = known.KNOWN, {**known.KNOWN, "v1": {"0" * 16: "0.1.0"}}
    try:
        return tapped(folder, ALL)
    finally:
        known.KNOWN = as_it_is


def unasked(folder: str) -> dict[str, Any]:
    """The first of two ranks, to which no sidecar says in time what it wants."""
    as_it_is, install.TapClient, choice._ASK_S = (install.TapClient, choice._ASK_S), Unasked, 0.1
    try:
        return tapped(folder, "on", tp=(0, 2))
    finally:
        install.TapClient, choice._ASK_S = as_it_is


def main(folder: str) -> dict[str, Any]:
    install.TapClient = Told
    said = Said()
    logging.getLogger("vllm").addHandler(said)
    everything, heads = "0,1,2,3", "1,blocks.1.attn_heads"
    told = {
        "alone": tapped(folder, everything),
        "rank 0": tapped(folder, everything, tp=(0, 2)),
        "rank 1": tapped(folder, everything, tp=(1, 2)),
        "stage 0": tapped(folder, everything, pp=(0, 2)),
        "stage 1": tapped(folder, everything, pp=(1, 2)),
        "core 1": tapped(folder, everything, dp=(1, 2)),
        "core 1, stage 1": tapped(folder, everything, dp=(1, 2), pp=(1, 2)),
        "heads, alone": tapped(folder, heads),
        "heads, rank 0": tapped(folder, heads, tp=(0, 2)),
        "two batches at once": tapped(folder, everything, enable_dbo=True),
        "three parts": tapped(folder, everything, ubatch_size=3),
        "unknown": unknown(folder),
        "unasked, rank 0": unasked(folder),
        "unasked, rank 1": tapped(folder, everything, tp=(1, 2), others="-nobody has said what is wanted"),
    }
    return {"workers": told, "said": [line for line in said.lines if "not_tapped" in line]}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
