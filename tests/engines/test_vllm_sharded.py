"""A model that several processes share: those of one block's parts, and those of one after the other's blocks."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from sidecar.types import Site, TapPoint
from tests.engines.environment import Environment
from tests.engines.models import LAYERS, tiny_model
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, tap_id, tapped, worst_error
from tests.engines.vllm_server import VllmServer

POINTS = (TapPoint(0), TapPoint(2, Site.MLP_OUT), TapPoint(LAYERS - 1))
TOLERANCE = 2e-4  # two implementations of one float32 model
# Two workers on two cores: what they need not have is time.
FLAGS = ("--max-num-seqs=4", "--max-model-len=512", f"--kv-cache-memory-bytes={64 << 20}")


def check(engine: Tapped, engines: int) -> None:
    """Every row of three requests at once, from so many engines, is the model's own."""
    draws = random.Random(0)
    prompts = [[draws.randrange(300, 20_000) for _ in range(length)] for length in (5, 90, 31)]
    done = engine.complete(prompts, ("one", "two", "three"), 8)
    engine.receiver.wait(lambda r: all(r.finished.count(tap_id(one)) == engines for one in done))
    reference = Reference(engine.server.model)
    for one in done:
        assert max(worst_error(engine, reference, one, POINTS).values()) < TOLERANCE
        assert all(sorted(engine.rows(tap_id(one), point)) == list(range(len(one.fed))) for point in POINTS)


def said(engine: Tapped, what: str) -> list[str]:
    return [line for line in engine.server.log if what in line]


def assert_tested_once(engine: Tapped, points: Iterable[TapPoint] = POINTS) -> None:
    for point in points:
        assert len(said(engine, f"self_test tap_point={point.name}: states come")) == 1
    assert not said(engine, "ERROR")


@pytest.mark.shows("vLLM V1", "tensor parallelism")
def test_of_ranks_that_share_every_block_one_sends_rows_and_the_others_keep_step_with_it(
    vllm: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags, folder = (*FLAGS, "--tensor-parallel-size=2"), tmp_path_factory.mktemp("t")
    with tapped(vllm, tiny_model("llama"), folder, *flags, points=POINTS, eager=True) as engine:
        check(engine, 1)
        assert [one.engine_id for one in engine.receiver.registrations] == ["vllm-under-test"]
        assert len(said(engine, "tapped engine_id=")) == len(said(engine, "rank 1 has the graph of rank 0")) == 1
        assert_tested_once(engine)


@pytest.mark.shows("vLLM V1", "pipeline parallelism")
def test_each_stage_of_a_pipeline_is_an_engine_that_sends_the_rows_of_its_own_blocks(
    vllm: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags, folder = (*FLAGS, "--pipeline-parallel-size=2"), tmp_path_factory.mktemp("p")
    with tapped(vllm, tiny_model("llama"), folder, *flags, points=POINTS, eager=True) as engine:
        check(engine, 2)
        stages = {one.engine_id for one in engine.receiver.registrations}
        assert stages == {"vllm-under-test/pp0", "vllm-under-test/pp1"}
        assert_tested_once(engine)


def test_a_tap_that_the_first_rank_alone_has_something_against_is_refused_in_all_and_they_answer_as_without_it(
    vllm: Environment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, prompt = tmp_path_factory.mktemp("r"), list(range(500, 540))
    nobody = {"STETHOSCOPE_TAP": "on", "STETHOSCOPE_ADDRESS": f"unix:{folder}/nobody"}
    flags = (*FLAGS, "--tensor-parallel-size=2")
    with VllmServer(vllm, tiny_model("llama"), folder, *flags, env=nobody) as server:
        answer = Reference(server.model).answer(prompt, 8)
        assert server.complete(prompt, max_tokens=8).tokens == answer
        refused = sorted(line.partition("not_tapped: ")[2] for line in server.log if "not_tapped" in line)
    why = "no sidecar said within 10 s which tap points it wants; name them: STETHOSCOPE_TAP=8,14"
    assert refused == [f"{one}; vLLM goes on as it is" for one in (why, f"rank 0 is not tapped: {why}")]
