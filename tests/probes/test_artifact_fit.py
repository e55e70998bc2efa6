"""An artifact of another model is refused, one of another serving configuration is stale; both sides are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probes.artifact import Artifact, fit, load_artifact
from probes.causal.evidence import GateName
from probes.manifest import OF_VALIDATION
from probes.registry import load_folder
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.reading.plan import build_plan
from sidecar.types import Evidence, ModelIdentity
from tests.probes.builders import MODEL, write_artifact


@pytest.fixture
def sound(folder: Path, root: Path) -> Artifact:
    return load_artifact(folder, root=root)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"architecture": "GPT2LMHeadModel"}, ("LlamaForCausalLM", "GPT2LMHeadModel")),
        ({"layers": 12}, ("6", "12")),
        ({"width": 16}, ("8", "16")),
        ({"tokenizer_digest": "d" * 64}, ("b" * 12, "d" * 12)),
    ],
)
def test_artifact_for_another_model_is_refused_naming_both_sides(
    sound: Artifact, change: dict[str, Any], both_sides: tuple[str, str]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        fit(sound.manifest, replace(MODEL, **change))
    assert caught.value.reason is ArtifactReason.OTHER_MODEL
    assert all(side in caught.value.text for side in both_sides)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"weights_digest": "e" * 64}, ("a" * 12, "e" * 12)),
        ({"weights_digest": ""}, ("a" * 12, "(not known)")),
        ({"tokenizer_digest": ""}, ("b" * 12, "(not known)")),
        ({"dtype": "bfloat16"}, ("float32", "bfloat16")),
        ({"quantisation": "awq"}, ("none", "awq")),
        ({"engine": "vllm"}, ("transformers", "vllm")),
        ({"engine": ""}, ("transformers", "(not known)")),
    ],
)
def test_another_serving_configuration_makes_an_artifact_stale_naming_both_sides(
    sound: Artifact, change: dict[str, Any], both_sides: tuple[str, str]
) -> None:
    verdict = fit(sound.manifest, replace(MODEL, **change))
    assert verdict.evidence is Evidence.STALE
    assert all(side in verdict.reason for side in both_sides)
    assert "a" * 13 not in verdict.reason


def test_refusal_comes_before_staleness(sound: Artifact) -> None:
    with pytest.raises(ArtifactError):
        fit(sound.manifest, replace(MODEL, width=16, dtype="bfloat16"))


@pytest.mark.parametrize("evidence", ["unverified", "decodable", "used"])
def test_the_same_model_keeps_the_manifests_own_evidence(root: Path, evidence: str) -> None:
    manifest = write_artifact(root, "another", evidence=evidence)
    other_engine_version: ModelIdentity = replace(MODEL, name="renamed", engine_version="9.9")
    assert fit(manifest, other_engine_version).evidence is Evidence(evidence)


def gate(name: str, *, passed: bool) -> dict[str, Any]:
    return {"name": name, "passed": passed, "text": "so it is"}


def test_an_artifact_that_failed_a_gate_of_quality_is_in_the_plan_and_may_not_flag(root: Path) -> None:
    gates = [gate("beats_text", passed=False), gate("not_length", passed=True), gate("threshold", passed=False)]
    write_artifact(root, "another", evidence="used", gates=gates)
    plan = build_plan(1, load_folder(root, limit=2), MODEL)
    told = {one.name: one.reason for one in plan.artifacts}
    assert told == {"another": "it failed its gates: beats_text, threshold", "probe_one": ""}
    assert {one.name: one.may_flag for one in plan.signals} == {"another": False, "probe_one": True}


@pytest.mark.parametrize("name", [*GateName])
def test_a_gate_of_validation_says_what_is_shown_of_a_probe_and_does_not_make_it_fail(root: Path, name: str) -> None:
    manifest = write_artifact(root, "another", evidence="decodable", gates=[gate(name, passed=False)])
    assert set(GateName) == OF_VALIDATION
    assert manifest.failed == ()
    assert fit(manifest, MODEL).reason == ""
