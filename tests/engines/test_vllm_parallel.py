"""Deployments on several devices: what each worker takes, through vLLM's real interfaces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engines.environment import HERE, Environment
from tests.engines.models import tiny_model

ALL = [f"blocks.{layer}.resid_post" for layer in range(4)]


@pytest.fixture(scope="module")
def told(vllm: Environment) -> dict[str, Any]:
    script = str(HERE / "inside" / "parallel_contract.py")
    printed = vllm.run(script, str(tiny_model("llama")), env={"STETHOSCOPE_ENGINE_ID": "engine"})
    made: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return made


@pytest.fixture(scope="module")
def workers(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = told["workers"]
    return found


def test_of_the_ranks_that_have_the_same_residual_stream_only_the_first_is_tapped_and_all_have_its_graph(
    workers: dict[str, dict[str, Any]],
) -> None:
    assert workers["alone"]["points"] == workers["rank 0"]["points"] == ALL
    assert workers["alone"]["engine"] == workers["rank 0"]["engine"] == "engine"
    assert workers["alone"]["graph"] == workers["rank 0"]["graph"] == {"auxiliary": [1, 2, 3, 4], "operators": 0}
    assert workers["rank 1"] == {"tapped": False, "graph": workers["rank 0"]["graph"]}


def test_a_stage_of_a_pipeline_takes_its_own_blocks_and_relays_nothing_through_the_others(
    workers: dict[str, dict[str, Any]],
) -> None:
    assert workers["alone"]["auxiliary"] == ALL, "the same model alone hands out its states itself"
    for name, engine, blocks in (("stage 0", "engine/pp0", (0, 1)), ("stage 1", "engine/pp1", (2, 3))):
        assert workers[name]["engine"] == engine
        assert workers[name]["points"] == [ALL[layer] for layer in blocks]
        assert workers[name]["auxiliary"] == []
        assert workers[name]["rows"] == {ALL[layer]: [10.0 * layer + 1.0] * 3 for layer in blocks}


def test_a_sidecar_can_tell_the_weights_of_one_stage_from_those_of_another(workers: dict[str, dict[str, Any]]) -> None:
    assert len({workers[name]["weights"] for name in ("alone", "stage 0", "stage 1")}) == 3
    assert workers["alone"]["weights"] == workers["core 1"]["weights"]


@pytest.mark.shows("vLLM V1", "data parallelism", how="contract")
def test_every_core_of_a_data_parallel_deployment_has_an_id_of_its_own(workers: dict[str, dict[str, Any]]) -> None:
    assert workers["core 1"]["engine"] == "engine/dp1"
    assert workers["core 1"]["points"] == ALL
    assert workers["core 1, stage 1"]["engine"] == "engine/dp1/pp1"
    assert workers["core 1, stage 1"]["points"] == ALL[2:]


def test_heads_that_lie_on_several_ranks_are_refused_aloud(told: dict[str, Any]) -> None:
    assert told["workers"]["heads, alone"]["points"] == ["blocks.1.attn_heads", ALL[1]]
    assert told["workers"]["heads, rank 0"] == {"tapped": False, "graph": {"auxiliary": [], "operators": 0}}
    assert told["said"][:1] == [
        "not_tapped: blocks.1.attn_heads: heads lie on several ranks under tensor parallelism; vLLM goes on as it is"
    ]


def test_a_step_that_is_computed_in_parts_is_refused_aloud_and_its_graph_is_left_as_it_is(told: dict[str, Any]) -> None:
    for name in ("two batches at once", "three parts"):
        assert told["workers"][name] == {"tapped": False, "graph": {"auxiliary": [], "operators": 0}}
    why = "micro-batches compute the rows of a step in parts, one after the other"
    assert told["said"][1:3] == [f"not_tapped: {why}; vLLM goes on as it is"] * 2


def test_a_runner_whose_source_is_not_known_is_refused_aloud_and_its_graph_is_left_as_it_is(
    told: dict[str, Any],
) -> None:
    assert told["workers"]["unknown"] == {"tapped": False, "graph": {"auxiliary": [], "operators": 0}}
    why = told["said"][3]
    assert why.startswith("not_tapped: the source of this vllm is not one that the tap knows (part v1, ")
    assert why.endswith("; known: 0.1.0); vLLM goes on as it is")


def test_what_the_first_rank_has_against_the_tap_leaves_the_graphs_of_all_ranks_as_they_are(
    told: dict[str, Any],
) -> None:
    untouched = {"tapped": False, "graph": {"auxiliary": [], "operators": 0}}
    assert told["workers"]["unasked, rank 0"] == told["workers"]["unasked, rank 1"] == untouched
    why = (
        "no sidecar said within 0.1 s which tap points it wants; name them: STETHOSCOPE_TAP=8,14",
        "rank 0 is not tapped: nobody has said what is wanted",
    )
    assert told["said"][4:] == [f"not_tapped: {one}; vLLM goes on as it is" for one in why]


@pytest.mark.shows("vLLM V1", "LoRA", how="contract")
def test_the_adapter_that_is_applied_goes_with_a_requests_rows(workers: dict[str, dict[str, Any]]) -> None:
    assert workers["stage 0"]["adapters"] == workers["stage 1"]["adapters"] == ["sql"]
