"""Puts taps into vLLM's own worker, as its plugin does, and prints as JSON what comes of it before the first request.

Real are vLLM's configuration with its hashes, its plugin loader and what the plugin wraps of its worker; the runner is a stub that
cannot run made-up tokens, so that the self-test fails.

``STETHOSCOPE_TAP=2 python worker_contract.py MODEL_FOLDER``
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from parallel_contract import ROWS, Model, Runner, Told, ranks
from v2_contract import new, scheduled
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
from vllm.v1.worker.worker_base import WorkerBase
from what_is_said import Said

from sidecar.tap.vllm import choice, install
from sidecar.tap.wish import parse_wish


def hashes(config: VllmConfig) -> dict[str, str]:
    """By which vLLM finds what it compiled: what its backend asks the configuration, and what counts ahead of time."""
    return {"backend": config.compute_hash(), "ahead of time": str(aot_compile_hash_factors(config))}


def made_runner(config: VllmConfig) -> Runner:
    told = config.model_config
    return Runner(Model(told.hf_text_config.num_hidden_layers, told.get_hidden_size()), told.get_hidden_size())


def step(runner: Runner) -> None:
    """Of a request that somebody made, or of one that an engine makes up to warm itself."""
    runner._update_states(scheduled(new(runner.input_batch.req_ids[0], ROWS)))
    runner._model_forward()


class Worker(WorkerBase):
    """Says by which hashes it would have compiled its model. Warms up as the second runner does, through its own steps."""

    def load_model(self) -> None:
        self.model_runner = made_runner(self.vllm_config)

    def compile_or_warm_up_model(self) -> str:
        self.hashes = hashes(self.vllm_config)
        step(self.model_runner)
        return "warm"


def tapped(config: VllmConfig, wish: str, *, handed_out: bool = True) -> dict[str, str]:
    """The hashes under another tap. handed_out: nobody else has asked the model for its auxiliary states."""
    runner = made_runner(config)
    runner.use_aux_hidden_state_outputs = not handed_out
    install.install(SimpleNamespace(model_runner=runner, vllm_config=config), parse_wish(wish))
    return hashes(config)


def main(folder: str) -> dict[str, Any]:
    install.TapClient = Told
    config, said = EngineArgs(model=folder, dtype="float32").create_engine_config(), Said()
    ranks()
    untapped, refused, hooked = hashes(config), tapped(config, "99"), tapped(config, "hooks:2")
    load_general_plugins()
    worker = Worker(config, 0, 0, "")
    worker.load_model()
    warm = worker.compile_or_warm_up_model()
    found = {
        "untapped": untapped,
        "refused": refused,
        "plain hooks": hooked,
        "block 2": worker.hashes,
        "block 3": tapped(config, "3"),
        "blocks 2 and 3": tapped(config, "2,3"),
        "heads of block 2": tapped(config, "blocks.2.attn_heads"),
        "block 2, by an operator": tapped(config, "2", handed_out=False),
        "block 2 again": tapped(config, "2"),
    }
    points = [point.name for point in worker.stethoscope.points]
    counted = [tally.tokens for tally in worker.stethoscope.client.tallies]
    step(worker.model_runner)
    counted = [counted, [tally.tokens for tally in worker.stethoscope.client.tallies]]
    told = {"compiled": choice.compiled(config), "hashes": found, "warm": warm, "points": points, "said": said.lines}
    return {**told, "counted": counted}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
