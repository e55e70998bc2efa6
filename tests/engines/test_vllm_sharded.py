"""A model that several processes share: those of one block's parts, and those of one after the other's blocks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import pytest

from sidecar.types import Site, TapPoint
from tests.e2e.own import write_artifacts
from tests.engines.beside import EVERYTHING
from tests.engines.environment import Environment
from tests.engines.models import LAYERS, tiny_model
from tests.engines.reference import Reference
from tests.engines.tapped import Tapped, staged, tap_id, tapped, worst_error
from tests.engines.vllm_server import VllmServer
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder
from tests.waiting import until

STAGES = ((TapPoint(0),), (TapPoint(2, Site.MLP_OUT), TapPoint(LAYERS - 1)))
POINTS = (*STAGES[0], *STAGES[1])
TOLERANCE = 2e-4  # two implementations of one float32 model
# Two workers on two cores: what they need not have is time.
FLAGS = ("--max-num-seqs=4", "--max-model-len=512", f"--kv-cache-memory-bytes={64 << 20}")


def check(engines: Sequence[Tapped]) -> None:
    """Every row of three requests at once is the model's own, wherever it came."""
    draws = random.Random(0)
    prompts = [[draws.randrange(300, 20_000) for _ in range(length)] for length in (5, 90, 31)]
    done = engines[0].complete(prompts, ("one", "two", "three"), 8)
    reference = Reference(engines[0].server.model)
    for engine, one in product(engines, done):
        engine.wait_for_end(tap_id(one))
        assert max(worst_error(engine, reference, one, engine.points).values()) < TOLERANCE
        assert all(sorted(engine.rows(tap_id(one), point)) == list(range(len(one.fed))) for point in engine.points)


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
        check([engine])
        assert [one.engine_id for one in engine.receiver.registrations] == ["vllm-under-test"]
        assert len(said(engine, "tapped engine_id=")) == len(said(engine, "rank 1 has the graph of rank 0")) == 1
        assert_tested_once(engine)


@pytest.mark.shows("vLLM V1", "pipeline parallelism", note="one sidecar a stage")
def test_each_stage_of_a_pipeline_sends_the_rows_of_its_own_blocks_to_a_sidecar_of_its_own(vllm: Environment) -> None:
    flags = (*FLAGS, "--pipeline-parallel-size=2")
    with (
        private_folder() as folder,
        staged(vllm, tiny_model("llama"), folder, *flags, stages=STAGES, eager=True) as stages,
    ):
        check(stages)
        assert_tested_once(stages[0])
        engines = [{one.engine_id for one in stage.receiver.registrations} for stage in stages]
        assert engines == [{"vllm-under-test/pp0"}, {"vllm-under-test/pp1"}]
        for stage in stages:
            stage.receiver.stop()
        check_sidecars(stages, folder)


def check_sidecars(stages: Sequence[Tapped], folder: Path) -> None:
    """Where the receivers were: each sees every token at a block of its own stage, and has one engine."""
    with ExitStack() as stack:
        clients = [stack.enter_context(sidecar(stage, folder / str(n))) for n, stage in enumerate(stages)]
        fed = len(stages[0].server.complete(list(range(500, 540)), max_tokens=8, ignore_eos=True).fed)
        for n, (client, stage) in enumerate(zip(clients, stages, strict=True)):
            until(lambda client=client: [(one.expected, one.seen) for one in client.status().coverage] == [(fed, fed)])
            (point,) = client.status().coverage
            assert point.tap_point == stage.points[-1].name
            # The probe's control was fitted to a few short texts in transformers, and these tokens are no text.
            assert point.reason in ("", "control_out_of_range")
            assert [one.engine_id for one in client.status().streams] == [f"vllm-under-test/pp{n}"]


@contextmanager
def sidecar(stage: Tapped, folder: Path) -> Iterator[Client]:
    """A real one, where the stage's receiver was, with a probe of the stage's last block; when the tap has found it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = stage.server.model
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(model)
    write_artifacts(AutoModelForCausalLM.from_pretrained(model), stage.points[-1].layer, folder / "own", tokenizer)
    address, found = stage.receiver.address, f" connected why={stage.receiver.address}"
    times = len(said(stage, found))
    with Process(folder, folder / "own", *EVERYTHING, address=address) as process, Client(process) as client:
        until(lambda: len(said(stage, found)) > times)
        yield client


@pytest.mark.full  # the same through a worker's own installation: tests/engines/test_vllm_parallel.py
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
