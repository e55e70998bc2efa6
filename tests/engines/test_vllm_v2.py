"""The runner that GPUs have by default, whose real data classes are driven by a stub: it cannot run here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from probes.smollm2 import cache_folder
from tests.engines.environment import HERE, Environment
from tests.engines.source import VLLM_NEXT

ONE, TWO = "cmpl-one-0", "cmpl-two-0"


@pytest.fixture(scope="module", params=["installed", "next"])
def captured(vllm: Environment, request: pytest.FixtureRequest) -> dict[str, Any]:
    """By the classes of the vLLM that is installed, and by those of the next one's source before it on the path."""
    env = {"PYTHONPATH": str(VLLM_NEXT.unpacked(cache_folder()))} if request.param == "next" else {}
    told: dict[str, Any] = json.loads(vllm.run(str(HERE / "inside" / "v2_contract.py"), env=env).splitlines()[-1])
    assert told.pop("vllm") == ("0.32.0" if request.param == "installed" else VLLM_NEXT.version)
    return told


@pytest.mark.shows("vLLM V2", "continuous batching", how="contract")
@pytest.mark.shows("vLLM V2", "chunked prefill", how="contract")
@pytest.mark.shows("vLLM V2", "prefix cache", how="contract")
def test_rows_belong_to_the_requests_and_positions_of_the_runners_own_batch(captured: dict[str, Any]) -> None:
    first, second = captured["behind"]["steps"][:2]
    assert first["segments"] == [[ONE, [0, 1, 2], "PREFILL", 5], [TWO, [4, 5], "PREFILL", 6]]
    assert second["segments"] == [[TWO, [6], "DECODE", 6], [ONE, [3, 4], "PREFILL", 5]]
    assert first["rows"] == {
        "blocks.1.resid_post": [1000.0, 1001.0, 1002.0, 1003.0, 1004.0],
        "blocks.3.resid_post": [1000.25, 1001.25, 1002.25, 1003.25, 1004.25],
    }
    assert captured["behind"]["unseen"][0] == {"prefix_cache": 4}


@pytest.mark.shows("vLLM V2", "traces", how="contract")
@pytest.mark.shows("vLLM V2", "LoRA", how="contract")
def test_a_requests_trace_and_its_adapter_go_with_its_rows(captured: dict[str, Any]) -> None:
    first, second = captured["behind"]["steps"][:2]
    assert first["info"] == [["", ""], ["00-a-b-01", "sql"]]
    assert second["info"] == [["00-a-b-01", "sql"], ["", ""]]


@pytest.mark.shows("vLLM V2", "preemption", how="contract")
def test_what_a_preempted_request_computes_again_is_not_captured_twice(captured: dict[str, Any]) -> None:
    assert captured["behind"]["steps"][2]["segments"] == [[TWO, [7], "DECODE", 6]]
    assert captured["behind"]["steps"][2]["rows"]["blocks.1.resid_post"] == [3007.0]
    assert captured["behind"]["tokens"][2] == 8


@pytest.mark.shows("vLLM V2", "n-gram speculation", how="contract")
def test_drafts_are_never_counted_as_seen_and_those_that_were_right_count_as_not_captured(
    captured: dict[str, Any],
) -> None:
    drafted, after = captured["behind"]["steps"][3:]
    assert drafted["segments"] == [[ONE, [5], "DECODE", 5]]
    assert after["segments"] == [[ONE, [7], "DECODE", 5]]
    assert captured["behind"]["unseen"][4] == {"unsupported": 1}
    assert captured["behind"]["tokens"][3:] == [1, 2]


def test_positions_that_a_scheduler_only_guesses_are_not_captured(captured: dict[str, Any]) -> None:
    assert len(captured["ahead"]["steps"]) == 4
    assert captured["ahead"]["unseen"][4] == {"unsupported": 2}


def test_ends_are_told_and_nothing_went_wrong(captured: dict[str, Any]) -> None:
    for told in captured.values():
        assert told["finished"] == [TWO, ONE]
        assert told["errors"] == {}
        assert all(told["methods"])
