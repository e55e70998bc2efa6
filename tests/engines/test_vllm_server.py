"""The real server of vLLM, untapped: that it answers as the model does, and that vLLM's own hidden states are the model's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
import transformers

from tests.engines.environment import Environment
from tests.engines.oracle_connector import Oracle
from tests.engines.vllm_server import Completion, VllmServer
from tests.waiting import until

pytestmark = pytest.mark.full  # the server and the oracle by themselves

NEW_TOKENS, REQUESTS, SHARED = 12, 8, 200
# vLLM's fused kernels and transformers' plain ones round differently: the worst row seen was at 1.3e-5 of its largest column.
# A neighbouring position's or layer's row is another row altogether.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Served:
    server: VllmServer
    oracle: Oracle
    model: Any  # the same, in transformers


@pytest.fixture(scope="module")
def served(vllm: Environment, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    library: Any = transformers  # its own types say too little
    loaded = library.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    last = loaded.config.num_hidden_layers - 1
    oracle = Oracle(tmp_path_factory.mktemp("oracle"), (0, last // 2, last))
    folder = tmp_path_factory.mktemp("server")
    with VllmServer(vllm, smollm2, folder, *oracle.flags, env=oracle.env) as server:
        print(f"ready after {server.ready_s:.0f} s")
        yield Served(server, oracle, loaded)


def _prompts() -> list[list[int]]:
    """Token ids, of lengths from 5 to 324; every other one begins with the same 200."""
    rng = np.random.default_rng(0)
    shared = rng.integers(300, 2000, SHARED).tolist()
    return [(shared if i % 2 else []) + rng.integers(300, 2000, 5 + 17 * i).tolist() for i in range(REQUESTS)]


def _asked(served: Served) -> list[Completion]:
    def ask(index: int) -> Completion:
        extra = {"ignore_eos": True, **served.oracle.asked}
        return served.server.complete(prompts[index], request_id=f"r{index}", max_tokens=NEW_TOKENS, **extra)

    prompts = _prompts()
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(ask, range(REQUESTS)))


def _states(model: Any, tokens: list[int], layers: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], int]:
    """The residual stream after each layer, [T, layers, D], and the next token, by the model alone."""
    kept: dict[int, npt.NDArray[np.float32]] = {}

    def keep(layer: int) -> Any:
        return lambda _module, _args, out: kept.__setitem__(
            layer, (out[0] if isinstance(out, tuple) else out)[0].numpy()
        )

    hooks = [model.model.layers[layer].register_forward_hook(keep(layer)) for layer in layers]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits
    for hook in hooks:
        hook.remove()
    return np.stack([kept[layer] for layer in layers], axis=1), int(logits[0, -1].argmax())


def test_vllms_own_states_and_answers_are_the_models_prefix_cached_positions_too(served):
    hits = served.server.metric("vllm:prefix_cache_hits_total")
    completions = _asked(served)
    assert served.server.metric("vllm:prefix_cache_hits_total") - hits > SHARED / 2
    worst = 0.0
    for index, completion in enumerate(completions):
        assert completion.id.startswith(f"cmpl-r{index}")
        assert len(completion.tokens) == NEW_TOKENS
        found = served.oracle.states(f"r{index}")
        assert found.tokens == completion.fed
        wanted, following = _states(served.model, completion.fed, served.oracle.layers)
        assert found.rows.shape == wanted.shape
        worst = max(worst, float((np.abs(found.rows - wanted).max(-1) / np.abs(wanted).max(-1)).max()))
        assert following == completion.tokens[-1]
    print(f"worst row: {worst:.1e} of its largest column")
    assert worst <= TOLERANCE


def test_a_stream_that_is_left_is_a_request_that_vllm_aborts(served):
    made = served.server.metric("vllm:generation_tokens_total")
    with served.server.stream([500] * 20, max_tokens=900, ignore_eos=True, **served.oracle.asked) as chunks:
        assert next(chunks)["choices"][0]["token_ids"]
        assert served.server.metric("vllm:num_requests_running") == 1
    until(lambda: served.server.metric("vllm:num_requests_running") == 0)
    assert 0 < served.server.metric("vllm:generation_tokens_total") - made < 900


def test_the_model_runs_in_the_workers_process(served):
    server = served.server
    processes = {pid: psutil.Process(pid) for pid in server.pids}
    before = {pid: process.cpu_times().user for pid, process in processes.items()}
    server.complete([500] * 300, max_tokens=300, ignore_eos=True)
    spent = {pid: process.cpu_times().user - before[pid] for pid, process in processes.items()}
    assert max(spent, key=spent.__getitem__) == server.worker_pid
    assert server.engine_pid not in (server.worker_pid, server.pids[0])


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(vllm, tmp_path):
    server = VllmServer(vllm, tmp_path / "no_such_model", tmp_path)
    with pytest.raises(AssertionError, match="no_such_model"), server:
        pass
    assert server.pids == []
