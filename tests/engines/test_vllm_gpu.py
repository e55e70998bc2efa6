"""On a machine with an NVIDIA GPU: vLLM as its users run it there, with CUDA graphs and its second runner. ``make gpu-check``

VLLM_PYTHON names an interpreter where vLLM for CUDA is installed, and this package beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from sidecar.types import TapPoint
from tests.engines.models import LAYERS, tiny_model
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, tap_id, tapped, worst_error
from tests.engines.vllm_server import VllmServer

PYTHON = os.environ.get("VLLM_PYTHON", "")
POINTS = tuple(TapPoint(layer) for layer in range(1, LAYERS))
TOLERANCE = 2e-3  # TF32 aside, kernels of another kind add up in another order
ROUNDS, REQUESTS, TOKENS = 8, 16, 64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not PYTHON, reason="needs VLLM_PYTHON: an interpreter with vLLM for CUDA and this package"),
]


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that somebody else made."""

    python: Path
    compiled: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(Path(PYTHON), tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def engine(
    request: pytest.FixtureRequest, installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tapped]:
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp("g")
    with tapped(installed, model, folder, points=POINTS, eager=False) as made:
        yield made


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(300, 20_000, size=int(length)).tolist() for length in rng.integers(3, 200, size=count)]


def test_every_row_of_a_replayed_graph_is_the_models_own(engine: Tapped) -> None:
    log = "\n".join(engine.server.log)
    assert "Capturing CUDA graphs" in log
    done = engine.complete(prompts(8), [f"gpu{n}" for n in range(8)], 48)
    reference = Reference(engine.server.model)
    for one in done:
        assert max(worst_error(engine, reference, one, POINTS).values()) < TOLERANCE
        assert len(engine.rows(tap_id(one), POINTS[0])) == len(one.fed)


def test_what_the_tap_costs_is_printed(engine: Tapped, installed: Installed, tmp_path: Path) -> None:
    def tokens_per_s(server: VllmServer) -> float:
        begun_s = time.perf_counter()
        made = sum(len(server.complete(one, max_tokens=TOKENS, ignore_eos=True).tokens) for one in prompts(REQUESTS))
        return made / (time.perf_counter() - begun_s)

    with VllmServer(installed, engine.server.model, tmp_path, eager=False) as bare:
        ratios = [tokens_per_s(engine.server) / tokens_per_s(bare) for _ in range(ROUNDS)]
    print(
        f"\nthroughput, tapped / not: {np.median(ratios[1:]):.3f} of {ROUNDS - 1} pairs {np.round(ratios[1:], 3).tolist()}"
    )
    assert np.median(ratios[1:]) > 0
