"""SGLang, which was not run: it needs CUDA.

Its own plugin loader, settings, batches, worker and scheduler are driven, around a stub of the model's runner whose states say
which row SGLang takes them for; and what its models do is read in their source.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from probes.smollm2 import cache_folder
from sidecar.tap.sglang.known import KNOWN, NAMES
from sidecar.tap.source import source_digest
from sidecar.types import TapPoint
from tests.engines.environment import HERE, Environment
from tests.engines.models import WIDTH, tiny_model
from tests.engines.source import SGLANG
from tests.engines.tapped import asking
from tests.service_fixtures import private_folder
from tests.tap.receiver import Receiver, decode, segments_of

POINTS = (TapPoint(1), TapPoint(2))
UNCAPTURED = ("HEALTH_CHECK_1", "draft", "quiet")  # SGLang's own, a step of a drafter, and one whose caller said never


@dataclass(frozen=True, slots=True)
class Driven:
    """What SGLang's own objects said of the steps, and what came to the sidecar's end of the wire."""

    told: dict[str, Any]
    receiver: Receiver


@pytest.fixture(scope="module")
def source() -> Path:
    return SGLANG.unpacked(cache_folder())


@pytest.fixture(scope="module")
def driven(vllm: Environment, source: Path) -> Iterator[Driven]:
    """In vLLM's environment: it has the versions of torch and transformers that SGLang wants, for CPUs."""
    with private_folder() as folder:
        receiver = Receiver(f"unix:{folder}/s", asking(*POINTS))
        receiver.start()
        try:
            env = {"PYTHONPATH": str(source), "STETHOSCOPE_TAP": "1,2", "STETHOSCOPE_ADDRESS": receiver.address}
            env |= {
                "STETHOSCOPE_ENGINE_ID": "sglang-test",
                "STETHOSCOPE_QUEUE_S": "60",
            }  # nothing is dropped for being late
            script = str(HERE / "inside" / "sglang_contract.py")
            printed = vllm.run("-W", "ignore", script, str(tiny_model("llama")), env=env)
            yield Driven(json.loads(printed.splitlines()[-1]), receiver)
        finally:
            receiver.stop()


def test_the_source_that_is_read_here_is_one_that_the_tap_knows(source: Path) -> None:
    assert KNOWN.get(source_digest(source / "sglang", NAMES)) == SGLANG.version


def test_sglangs_loader_finds_the_plugin_and_its_registry_puts_the_hooks_on(driven: Driven) -> None:
    assert set(driven.told["before"].values()) == {False}
    assert set(driven.told["after"].values()) == {True}


@pytest.fixture(scope="module")
def looked(vllm: Environment, source: Path) -> dict[str, Any]:
    printed = vllm.run("-W", "ignore", str(HERE / "inside" / "sglang_untapped.py"), env={"PYTHONPATH": str(source)})
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return told


def test_without_its_variable_nothing_is_hooked_and_nothing_of_ours_is_imported(looked: dict[str, Any]) -> None:
    said_no = {"sidecar", "sidecar.tap", "sidecar.tap.switch", "sidecar.tap.sglang", "sidecar.tap.sglang.plugin"}
    assert set(looked["modules"]) == said_no
    assert (looked["untapped"], looked["without a scheduler"], looked["tapped"]) == ([], [], 3)


@pytest.mark.shows("SGLang", "unknown version", how="contract")
def test_an_sglang_whose_source_is_not_known_is_left_as_it_is_and_the_log_says_why(looked: dict[str, Any]) -> None:
    (said,) = looked["unknown"]
    assert said.startswith("not_tapped: the source of this sglang is not one that the tap knows")
    assert said.endswith("SGLang goes on as it is")


def test_a_setting_that_makes_no_sense_is_refused_with_its_reason_and_nothing_is_hooked(looked: dict[str, Any]) -> None:
    why = "STETHOSCOPE_QUEUE_S: 'soon' is not a number of seconds over 0 and below 3600"
    assert looked["refused"] == [f"not_tapped: {why}; SGLang goes on as it is"]


@pytest.mark.shows("SGLang", "continuous batching", how="contract")
@pytest.mark.shows("SGLang", "chunked prefill", how="contract")
@pytest.mark.shows("SGLang", "preemption", how="contract")
def test_each_row_is_the_one_that_sglangs_own_forward_batch_has_for_its_request_and_position(driven: Driven) -> None:
    """The stub wrote into each row its place and position as ForwardBatch has them."""
    captured = {}
    for batch in driven.receiver.batches:
        rows = {point: decode(tensor) for point, tensor in zip(POINTS, batch.tensors, strict=True)}
        row = 0
        for segment in segments_of(batch):
            for position in segment.positions:
                for place, point in enumerate(POINTS):
                    assert rows[point].shape[1] == WIDTH
                    assert rows[point][row, 1] == position + 0.25 * place
                key = (segment.request_id, position)
                assert key not in captured, "twice"
                captured[key] = batch.step
                row += 1
    computed = {(rid, at) for step in driven.told["rows"] for rid, at in step if rid not in UNCAPTURED}
    assert captured.keys() == computed - {("two", at) for at in range(4)}, "but for what was computed again"
    assert [len({step for (rid, _), step in captured.items() if rid == name}) for name in ("one", "two")] == [3, 4]


@pytest.mark.shows("SGLang", "LoRA", how="contract")
@pytest.mark.shows("SGLang", "traces", how="contract")
def test_the_rows_of_a_step_are_told_apart_by_request(driven: Driven) -> None:
    first = driven.receiver.batches[0]
    assert [(one.request_id, list(one.positions), one.prompt_tokens) for one in segments_of(first)] == [
        ("two", [4, 5], 6), ("one", [0, 1, 2], 5), ("lost", [0, 1], 2)
    ]  # fmt: skip
    assert decode(first.tensors[0])[:, 0].tolist() == [0, 0, 1, 1, 1, 3, 3]
    assert segments_of(first)[0].traceparent.startswith("00-4bf92f")
    assert segments_of(first)[0].route == "chat"
    assert list(first.segments.adapters) == ["", "", "french"]


@pytest.mark.shows("SGLang", "prefix cache", how="contract")
@pytest.mark.shows("SGLang", "sampling per request", how="contract")
def test_what_the_radix_cache_had_is_unseen_and_no_token_is_counted_twice(driven: Driven) -> None:
    computed = [rid for step in driven.told["rows"] for rid, _ in step if rid != "draft"]
    again, checked, quiet = 8, 1, 3
    unreadable = 7 + 4, 2  # all that is new of two prompts; and one a request where prompts are past
    assert driven.told["tokens"] == len(computed) + sum(unreadable)
    assert driven.told["unseen"] == {
        "prefix_cache": 4,
        "sampling": again + checked + quiet,
        "unsupported": sum(unreadable),
    }
    kinds = (f"steps of the kind {kind}" for kind in ("SPLIT_PREFILL", "TARGET_VERIFY"))
    assert driven.told["errors"] == {"steps without the scheduler's word": 1, **dict.fromkeys(kinds, 1)}


@pytest.mark.shows("SGLang", "aborts", how="contract")
def test_a_request_ends_when_it_is_finished_or_forgotten(driven: Driven) -> None:
    assert driven.receiver.finished[:2] == ["one", "two"]
    assert sorted(driven.receiver.finished[2:]) == ["last", "lost"]


@pytest.mark.shows("SGLang", "data parallelism", how="contract")
def test_what_cannot_be_tapped_is_refused_with_what_to_do(driven: Driven) -> None:
    refusals = driven.told["refusals"]
    flags = "--enable-return-aux-hidden-states --speculative-algorithm EAGLE3 --return-aux-hidden-state-layer-ids 1 2"
    assert flags in refusals["untold"]
    assert flags in refusals["other layers"]
    assert "pipeline" in refusals["pipeline"]
    assert "another process" in refusals["disaggregated"]
    assert refusals["second rank"] == "", "the other ranks have the same states"
    assert driven.told["replica"] == "sglang-test/dp1"


def test_the_sidecar_is_told_which_model_it_is(driven: Driven) -> None:
    model = driven.receiver.registrations[-1].model
    assert (model.architecture, model.layers, model.width, model.engine) == ("LlamaForCausalLM", 4, WIDTH, "sglang")
    assert (model.dtype, model.quantisation) == ("float16", "none"), (
        "what SGLang makes of float32 where nothing is asked"
    )
    assert model.engine_version == "0.5.23"


def _methods(source: Path, name: str) -> dict[str, ast.FunctionDef]:
    """The method of this name of every language model that has it, by file and class."""
    found = {}
    for path in sorted((source / "sglang" / "srt" / "models").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for one in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(one, ast.FunctionDef) and one.name == name:
                    found[f"{path.name}:{node.name}"] = one
    return found


def test_models_that_hand_out_layers_say_where_the_tap_looks(source: Path) -> None:
    """The blocks before which a state is taken stand on the model inside, or on what a model inside is handed them by."""
    setters = _methods(source, "set_eagle3_layers_to_capture")
    assert len(setters) >= 20
    for name, method in setters.items():
        written = {ast.unparse(one) for one in ast.walk(method) if isinstance(one, ast.Attribute)}
        kept = {f"{holder}.layers_to_capture" for holder in ("self", "self.model", "self.language_model")}
        assert kept & written or any(one.endswith(".set_eagle3_layers_to_capture") for one in written), name


@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3", "gemma3_causal", "gpt_oss"])
def test_a_layer_that_is_asked_for_is_taken_where_the_next_block_begins(source: Path, model: str) -> None:
    (method,) = (
        one for name, one in _methods(source, "set_eagle3_layers_to_capture").items() if name.startswith(f"{model}.py:")
    )
    assert "[val + 1 for val in layer_ids]" in ast.unparse(method)


def test_the_health_checks_are_known_by_the_prefix_that_sglang_gives_them(source: Path) -> None:
    from sidecar.tap.sglang.requests import HEALTH_CHECK

    tree = ast.parse((source / "sglang" / "srt" / "constants.py").read_text(encoding="utf-8"))
    told = {ast.unparse(one.targets[0]): one.value for one in tree.body if isinstance(one, ast.Assign)}
    assert ast.literal_eval(told["HEALTH_CHECK_RID_PREFIX"]) == HEALTH_CHECK
