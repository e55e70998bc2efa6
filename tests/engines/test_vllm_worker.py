"""Between the loading of the model and the first request: what a tap does to the cache of compiled graphs, and what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engines.environment import HERE, Environment
from tests.engines.models import tiny_model


@pytest.fixture(scope="module")
def told(vllm: Environment) -> dict[str, Any]:
    surroundings = {"VLLM_PLUGINS": "stethoscope", "STETHOSCOPE_TAP": "2"}
    printed = vllm.run(str(HERE / "inside" / "worker_contract.py"), str(tiny_model("llama")), env=surroundings)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def test_graphs_with_and_without_a_tap_and_of_different_taps_are_never_taken_for_one_another(
    told: dict[str, Any],
) -> None:
    """Of one configuration, in one process: nothing but the tap differs, and vLLM looks for its graphs by these hashes."""
    assert told["compiled"]
    hashes = told["hashes"]
    different = ("untapped", "block 2", "block 3", "blocks 2 and 3", "heads of block 2", "block 2, by an operator")
    for cache, plain in hashes["untapped"].items():
        assert len({hashes[one][cache] for one in different}) == len(different), cache
        assert {len(hashes[one][cache]) for one in different} == {len(plain)}


def test_the_same_tap_finds_its_graphs_again_and_a_refused_one_those_without_a_tap(told: dict[str, Any]) -> None:
    assert told["hashes"]["block 2 again"] == told["hashes"]["block 2"]
    assert told["hashes"]["refused"] == told["hashes"]["plain hooks"] == told["hashes"]["untapped"]


def test_a_self_test_that_fails_says_so_and_the_worker_stays_tapped_and_goes_on(told: dict[str, Any]) -> None:
    assert told["points"] == ["blocks.2.resid_post"]
    assert told["warm"] == "warm"
    errors = [line for line in told["said"] if line.startswith("ERROR")]
    hooks = "nothing says that a compiled model runs plain hooks: serve with --enforce-eager, or leave out 'hooks:'"
    assert errors == [
        "ERROR not_tapped: blocks.99.resid_post: the model's blocks are 0 to 3; vLLM goes on as it is",
        f"ERROR not_tapped: {hooks}; vLLM goes on as it is",
        "ERROR self_test_failed: whether states come is not known; the tap stays, and vLLM goes on",
    ]


def test_steps_by_which_an_engine_warms_itself_are_nobodys_and_the_next_is_somebodys(told: dict[str, Any]) -> None:
    assert told["counted"] == [[], [3]]
