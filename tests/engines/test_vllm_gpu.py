"""On a machine with an NVIDIA GPU: vLLM as its users run it there, with CUDA graphs, by both of its runners. ``make gpu-check``

VLLM_PYTHON names an interpreter where vLLM for CUDA is installed, and this package beside it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch

from sidecar.types import Site, TapPoint, UnseenReason
from tests.engines.installed import PYTHON, Installed
from tests.engines.models import LAYERS, tiny_model
from tests.engines.projected import assert_projected, assert_swapped
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, tap_id, tapped, worst_error
from tests.waiting import until

RAN_ONCE = "NVIDIA H100 80GB, 2026-11-23, 21ff066"  # where, when and at which commit these last passed
POINTS = (TapPoint(1), TapPoint(2, Site.ATTN_HEADS), TapPoint(2, Site.MLP_OUT), TapPoint(LAYERS - 1))
CHUNK = 128
TOLERANCE = 2e-4  # two implementations of one float32 model, as on a CPU
HALF = 0.15  # the same in bfloat16, of 8 bits: weights, activations and states
GRAPH = re.compile(r"\|\s*\d+\s*\|\s*\d+\s*\|\s*\d+\s*\|\s*(FULL|PIECEWISE)\s*\|\s*\d+\s*\|")
# Every server takes a tenth of the device: several of them fit. What a step was run as is told every second.
FLAGS = (
    "--gpu-memory-utilization=0.1",
    f"--max-num-batched-tokens={CHUNK}",
    "--enable-chunked-prefill",
    "--cudagraph-metrics",
)
# Triton multiplies float32 with TF32's 10 bits unless it is told otherwise.
SURROUNDINGS = {"VLLM_LOG_STATS_INTERVAL": "1", "TRITON_F32_DEFAULT": "ieee"}
GUESSES = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
RUNNERS = {"V1": "0", "V2": "1"}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not PYTHON, reason="needs VLLM_PYTHON: an interpreter with vLLM for CUDA and this package"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module", params=list(itertools.product(RUNNERS, ("llama", "qwen3"))), ids="-".join)
def engine(
    request: pytest.FixtureRequest, installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tapped]:
    runner, architecture = request.param
    with _tapped(installed, tmp_path_factory, runner, architecture) as made:
        yield made


def _tapped(
    installed: Installed,
    tmp_path_factory: pytest.TempPathFactory,
    runner: str,
    architecture: str,
    *flags: str,
    points: Sequence[TapPoint] = POINTS,
) -> AbstractContextManager[Tapped]:
    folder, which = tmp_path_factory.mktemp("g"), {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner]}
    model, surroundings = tiny_model(architecture), SURROUNDINGS | which
    return tapped(installed, model, folder, *FLAGS, *flags, points=points, eager=False, surroundings=surroundings)


@pytest.fixture(scope="module")
def reference(engine: Tapped) -> Reference:
    return Reference(engine.server.model)


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, 20_000, size=length).tolist()


def run_as(engine: Tapped) -> set[str]:
    """As which kinds of CUDA graph steps were run so far, by vLLM's own count of them."""
    return {found[1] for line in engine.server.log if (found := GRAPH.search(line))}


@pytest.mark.shows("vLLM V1", "continuous batching", how="once")
@pytest.mark.shows("vLLM V2", "continuous batching", how="once")
@pytest.mark.shows("vLLM V1", "chunked prefill", how="once")
@pytest.mark.shows("vLLM V2", "chunked prefill", how="once")
@pytest.mark.shows("vLLM V1", "torch.compile", how="once")
@pytest.mark.shows("vLLM V2", "torch.compile", how="once")
@pytest.mark.shows("vLLM V1", "CUDA graphs", how="once")
@pytest.mark.shows("vLLM V2", "CUDA graphs", how="once")
@pytest.mark.shows("vLLM V1", "heads and MLPs", how="once")
@pytest.mark.shows("vLLM V2", "heads and MLPs", how="once")
def test_every_row_of_a_replayed_graph_is_the_models_own(engine: Tapped, reference: Reference) -> None:
    lengths = (3, 290, 17, 1, 64, 130, 257, 9)
    done = engine.complete([prompt(n, length) for n, length in enumerate(lengths)], [f"gpu{n}" for n in range(8)], 48)
    worst = [worst_error(engine, reference, one, POINTS) for one in done]
    print("\nworst errors:", {point.name: max(one[point] for one in worst) for point in POINTS})
    assert max(max(one.values()) for one in worst) < TOLERANCE
    assert all(len(engine.rows(tap_id(one), point)) == len(one.fed) for one in done for point in POINTS)
    until(lambda: run_as(engine) == {"FULL", "PIECEWISE"})


@pytest.mark.shows("vLLM V1", "prefix cache", how="once")
@pytest.mark.shows("vLLM V2", "prefix cache", how="once")
def test_what_the_prefix_cache_had_is_said_to_be_unseen_and_never_made_up(engine: Tapped, reference: Reference) -> None:
    shared = prompt(200, 300)
    (first,) = engine.complete([[*shared, 5, 6]], ["warms"], 4)
    (second,) = engine.complete([[*shared, 7, 8, 9]], ["hits"], 4)
    assert max(worst_error(engine, reference, second, POINTS).values()) < TOLERANCE
    told = engine.segments(tap_id(second))[0].unseen
    assert set(told) == {UnseenReason.PREFIX_CACHE}
    assert told[UnseenReason.PREFIX_CACHE] >= 128  # whole blocks of the engine's
    rows = engine.rows(tap_id(second), POINTS[0])
    assert sorted(rows) == list(range(told[UnseenReason.PREFIX_CACHE], len(second.fed)))
    assert len(engine.rows(tap_id(first), POINTS[0])) == len(first.fed)


@pytest.mark.shows("vLLM V1", "aborts", how="once")
@pytest.mark.shows("vLLM V2", "aborts", how="once")
def test_an_aborted_request_is_over_and_those_beside_it_lose_no_row(engine: Tapped, reference: Reference) -> None:
    with engine.server.stream(prompt(300, 40), request_id="left", max_tokens=900, ignore_eos=True) as chunks:
        for _ in range(3):
            next(chunks)
        done = engine.complete([prompt(301, 50)], ["stays"], 12)
    engine.wait_for_end("cmpl-left-0")
    assert max(worst_error(engine, reference, done[0], POINTS).values()) < TOLERANCE
    seen = sorted(engine.rows("cmpl-left-0", POINTS[0]))
    assert seen == list(range(len(seen)))
    assert len(seen) >= 42


@pytest.mark.shows("vLLM V1", "projected mode", how="once")
@pytest.mark.shows("vLLM V2", "projected mode", how="once")
def test_readings_made_on_the_device_are_those_of_its_rows(engine: Tapped, reference: Reference) -> None:
    assert_projected(engine, reference, prompt(600, 160), TOLERANCE, 2 * TOLERANCE)


def test_another_plan_is_swapped_in_on_the_device_while_a_request_is_answered(engine: Tapped) -> None:
    assert_swapped(engine, prompt(700, 40))


def test_the_tap_says_which_way_it_takes_and_that_states_come(engine: Tapped) -> None:
    log = "\n".join(engine.server.log)
    assert all(f"self_test tap_point={point.name}: states come" in log for point in POINTS)
    assert f"{POINTS[0].name}:auxiliary" in log
    assert f"{POINTS[1].name}:operator" in log
    assert UnseenReason.TAP_DROPPED not in engine.receiver.unseen
    assert UnseenReason.UNSUPPORTED not in engine.receiver.unseen


@pytest.mark.parametrize("runner", RUNNERS)
def test_in_bfloat16_every_row_is_the_models_own_to_the_bits_of_that_type(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory, runner: str
) -> None:
    with _tapped(installed, tmp_path_factory, runner, "qwen3", "--dtype=bfloat16") as engine:
        done = engine.complete([prompt(n, 20 + 30 * n) for n in range(8)], [f"half{n}" for n in range(8)], 32)
        reference = Reference(engine.server.model)
        worst = [worst_error(engine, reference, one, POINTS) for one in done]
        print("\nworst errors:", {point.name: max(one[point] for one in worst) for point in POINTS})
        print([line[-100:] for line in engine.server.log if "FlashAttention version" in line])
        assert max(max(one.values()) for one in worst) < HALF
        assert all(len(engine.rows(tap_id(one), point)) == len(one.fed) for one in done for point in POINTS)


@pytest.mark.shows("vLLM V1", "n-gram speculation", how="once")
@pytest.mark.shows("vLLM V2", "n-gram speculation", how="once")
@pytest.mark.shows("vLLM V2", "n-gram speculation", how="unseen")
@pytest.mark.parametrize("runner", RUNNERS)
def test_rejected_guesses_are_no_rows_and_what_is_not_captured_is_counted(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory, runner: str
) -> None:
    points, guesses = (TapPoint(1), TapPoint(2, Site.MLP_OUT)), f"--speculative-config={json.dumps(GUESSES)}"
    with _tapped(installed, tmp_path_factory, runner, "qwen3", guesses, points=points) as engine:
        done = engine.complete([repeating(n) for n in range(4)], [f"guess{n}" for n in range(4)], 120)
        drafts, accepted = (
            engine.server.metric(f"vllm:spec_decode_num_{kind}_tokens_total") for kind in ("draft", "accepted")
        )
        assert 0 < accepted < drafts
        reference = Reference(engine.server.model)
        for one in done:
            assert max(worst_error(engine, reference, one, points).values()) < TOLERANCE
        missing = sum(len(one.fed) - len(engine.rows(tap_id(one), points[0])) for one in done)
        print(f"\n{drafts:.0f} drafts, {accepted:.0f} accepted, {missing} positions not captured")
        assert missing <= (accepted if runner == "V2" else 0)


def repeating(seed: int) -> list[int]:
    """A prompt that n-grams guess from, and often wrongly."""
    rng = random.Random(seed)
    phrase = [rng.randrange(300, 20_000) for _ in range(6)]
    return [*phrase, *phrase, *(rng.choice(phrase) for _ in range(12))]
