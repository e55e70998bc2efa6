"""Circuit artifacts: written whole, read back exactly, and refused with a reason where anything about them is not as it says."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from probes.artifact import load_artifact
from probes.circuits.artifact import fit, load_circuit, save_circuit
from probes.circuits.manifest import CircuitManifest
from probes.circuits.validation.gates import gates
from probes.envelope import FOLDER_LIMIT_ENTRIES, LIMIT_BYTES, MANIFEST, MANIFEST_LIMIT_BYTES, WEIGHTS
from probes.release.signature import Standing, make_keys, read_public_key, sign
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.types import Evidence, TapPoint
from tests.circuits.small import LAYER, MLP, ablation, columns, findings, manifest_fields, write_circuit
from tests.probes.broken import Bomb, seal
from tests.probes.builders import MODEL, WIDTH, write_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_circuit(tmp_path / "going_on")
    return tmp_path / "going_on"


def refusal(folder: Path) -> ArtifactReason:
    with pytest.raises(ArtifactError) as caught:
        load_circuit(folder, root=folder)
    return caught.value.reason


def validated(**changes: Any) -> dict[str, Any]:
    """A manifest whose gates are what its findings give."""
    draft = manifest_fields(findings=findings(**changes))
    told = CircuitManifest.model_validate(
        draft | {"schema": "stethoscope.circuit/1", "content_digest": "0" * 64, "gates": []}
    )
    assert told.findings is not None
    return draft | {"gates": [gate.model_dump() for gate in gates(told.findings, told.score)]}


def test_what_is_saved_is_loaded_bit_for_bit(folder: Path) -> None:
    circuit = load_circuit(folder, root=folder)
    assert set(circuit.columns) == {LAYER, MLP}
    for where, wanted in columns().items():
        np.testing.assert_array_equal(circuit.columns[where], wanted)
    assert circuit.manifest.spec_hash == circuit.manifest.content_digest
    assert [one.node for one in circuit.manifest.watched] == ["blocks.3.attn_heads.1", "blocks.2.mlp_out"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]


def test_the_same_circuit_gives_the_same_bytes_and_every_change_another_spec_hash(folder: Path, tmp_path: Path) -> None:
    write_circuit(tmp_path / "again")
    for name in (MANIFEST, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    own = load_circuit(folder, root=folder).manifest.spec_hash
    score = manifest_fields()["score"] | {"bias": 0.5}
    assert write_circuit(tmp_path / "moved", score=score).spec_hash != own
    others = {where: 2 * each for where, each in columns().items()}
    assert save_circuit(tmp_path / "doubled", manifest_fields(), others).spec_hash != own


def test_edges_of_the_score_are_65_and_theta_is_one_of_them(folder: Path) -> None:
    score = load_circuit(folder, root=folder).manifest.score
    assert len(score.edges) == 65
    assert score.theta in score.edges


def test_a_probe_is_no_circuit_and_a_circuit_no_probe(folder: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path, "a_probe")
    assert refusal(tmp_path / "a_probe") is ArtifactReason.BAD_MANIFEST
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder, root=folder)
    assert caught.value.reason is ArtifactReason.BAD_MANIFEST


def test_evidence_is_used_once_every_gate_passed_and_never_before(tmp_path: Path) -> None:
    fields = validated()
    assert save_circuit(tmp_path / "a", fields | {"evidence": "used", "severity": "page"}, columns()).failed == ()
    for wrong in (
        fields,  # passed, and says unverified
        manifest_fields(evidence="used"),  # nothing was found out
        validated(stability={"resamples": 1000, "jaccard": 0.1}) | {"evidence": "used"},
        fields | {"evidence": "decodable"},
    ):
        with pytest.raises(ArtifactError) as caught:
            save_circuit(tmp_path / "b", wrong, columns())
        assert caught.value.reason is ArtifactReason.BAD_MANIFEST
    assert not (tmp_path / "b").exists()


def test_ablations_that_disagree_are_no_obstacle_to_a_ticket_and_rule_out_a_page(tmp_path: Path) -> None:
    half_left = {"left": 0.7, "interval": [0.6, 0.8], "random": [1.0] * 24, "p_value": 0.04}
    apart = [ablation("resample"), ablation("mean", necessity=half_left), ablation("zero")]
    fields = validated(ablations=apart) | {"evidence": "used"}
    assert save_circuit(tmp_path / "ticket", fields, columns()).evidence is Evidence.USED
    with pytest.raises(ArtifactError):
        save_circuit(tmp_path / "page", fields | {"severity": "page"}, columns())


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"architecture": "GPT2LMHeadModel"}, ("LlamaForCausalLM", "GPT2LMHeadModel")),
        ({"layers": 12}, ("6", "12")),
        ({"width": 16}, ("8", "16")),
        ({"tokenizer_digest": "d" * 64}, ("b" * 12, "d" * 12)),
    ],
)
def test_a_circuit_of_another_model_is_refused_naming_both_sides(folder, change, both_sides) -> None:
    with pytest.raises(ArtifactError) as caught:
        fit(load_circuit(folder, root=folder).manifest, replace(MODEL, **change))
    assert caught.value.reason is ArtifactReason.OTHER_MODEL
    assert all(side in caught.value.text for side in both_sides)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"weights_digest": "e" * 64}, ("a" * 12, "e" * 12)),
        ({"weights_digest": ""}, ("a" * 12, "(not known)")),
        ({"dtype": "bfloat16"}, ("float32", "bfloat16")),
        ({"quantisation": "awq"}, ("none", "awq")),
        ({"engine": "vllm"}, ("transformers", "vllm")),
    ],
)
def test_another_serving_configuration_makes_a_validated_circuit_stale(tmp_path, change, both_sides) -> None:
    manifest = save_circuit(tmp_path / "a", validated() | {"evidence": "used", "severity": "page"}, columns())
    assert fit(manifest, MODEL).evidence is Evidence.USED
    assert fit(manifest, MODEL).reason == ""
    verdict = fit(manifest, replace(MODEL, **change))
    assert verdict.evidence is Evidence.STALE
    assert all(side in verdict.reason for side in both_sides)


def test_a_draft_says_why_it_may_not_page(folder: Path, tmp_path: Path) -> None:
    assert fit(load_circuit(folder, root=folder).manifest, MODEL).reason == "it was not validated"
    failed = save_circuit(tmp_path / "a", validated(stability=None), columns())
    assert (fit(failed, MODEL).evidence, fit(failed, MODEL).reason) == (
        Evidence.UNVERIFIED,
        "it failed its gates: stable",
    )


def test_the_same_keys_sign_circuits_and_probes(folder: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "key")
    own = load_circuit(folder, root=folder).manifest.spec_hash
    sign(folder, tmp_path / "key")
    public, manifest = read_public_key(tmp_path / "key.pub"), load_circuit(folder, root=folder).manifest
    assert manifest.spec_hash == own
    assert public.standing(manifest) is Standing.SOUND
    make_keys(tmp_path / "other")
    assert read_public_key(tmp_path / "other.pub").standing(manifest) is Standing.OTHER_KEY


def packed(**changes: Any) -> bytes:
    return save({where.name: each for where, each in columns().items()} | changes)


def spoiled(where: TapPoint, row: int, column: int, value: float) -> bytes:
    each = columns()[where].copy()
    each[row, column] = value
    return packed(**{where.name: each})


BAD_WEIGHTS = [
    pytest.param(b"", ArtifactReason.NOT_SAFETENSORS, id="empty"),
    pytest.param(pickle.dumps([1, 2]), ArtifactReason.NOT_SAFETENSORS, id="a pickle"),
    pytest.param(struct.pack("<Q", 1 << 40) + b"{}", ArtifactReason.BAD_HEADER, id="an endless header"),
    pytest.param(packed(extra=np.ones((2, 2), np.float32)), ArtifactReason.UNKNOWN_TENSOR, id="one too many"),
    pytest.param(save({MLP.name: columns()[MLP]}), ArtifactReason.UNKNOWN_TENSOR, id="one missing"),
    pytest.param(packed(**{MLP.name: np.ones((WIDTH, 1))}), ArtifactReason.BAD_DTYPE, id="float64"),
    pytest.param(packed(**{MLP.name: np.ones((WIDTH, 2), np.float32)}), ArtifactReason.BAD_SHAPE, id="columns"),
    pytest.param(packed(**{MLP.name: np.ones((WIDTH + 1, 1), np.float32)}), ArtifactReason.BAD_SHAPE, id="rows"),
    pytest.param(packed(**{MLP.name: np.ones(WIDTH, np.float32)}), ArtifactReason.BAD_SHAPE, id="a vector"),
    pytest.param(packed()[:-4], ArtifactReason.OVERLAP, id="cut"),
    pytest.param(packed() + b"code", ArtifactReason.HOLE, id="bytes behind"),
    pytest.param(spoiled(MLP, 0, 0, np.nan), ArtifactReason.NON_FINITE, id="NaN"),
    pytest.param(spoiled(LAYER, 7, 1, np.inf), ArtifactReason.NON_FINITE, id="infinite"),
    pytest.param(
        packed(**{MLP.name: np.zeros((WIDTH, 1), np.float32)}), ArtifactReason.BAD_WEIGHTS, id="a column of zeros"
    ),
    pytest.param(spoiled(LAYER, 0, 0, 1.0), ArtifactReason.BAD_WEIGHTS, id="reads another head"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_WEIGHTS)
def test_weights_that_lie_are_refused_with_their_own_reason(folder: Path, data: bytes, reason: ArtifactReason) -> None:
    seal(folder, data)
    assert refusal(folder) is reason


def changed(path: str, value: Any) -> dict[str, Any]:
    """The fields of a draft with one of them, deep inside, set to a value; None takes it out."""
    fields: Any = json.loads(json.dumps(manifest_fields()))
    *above, last = path.split(".")
    at = fields
    for step in above:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return {above[0] if above else last: fields[above[0] if above else last]}


BAD_FIELDS = {
    "unknown key": ("surprise", 1),
    "unknown key within": ("score.surprise", 1),
    "another schema": ("schema", "stethoscope.circuit/2"),
    "no such severity": ("severity", "wake everybody"),
    "no such tap point": ("nodes.1.node", "blocks.2.nowhere"),
    "a node twice": ("nodes.2.node", "blocks.2.mlp_out"),
    "a layer beyond the model": ("nodes.2.node", "blocks.6.mlp_out"),
    "a head beyond its row": ("nodes.0.node", "blocks.3.attn_heads.2"),
    "a head without a number": ("nodes.2.node", "blocks.1.attn_heads"),
    "rows that heads do not fill": ("places.1.heads", 3),
    "a watched node without its place": ("nodes.1.node", "blocks.1.mlp_out"),
    "columns that nobody owns": ("places.0.columns", 2),
    "columns of two owners": ("nodes.1.readout.first", 1),
    "a direction of two columns": ("nodes.1.readout.columns", 2),
    "nine columns of energy": ("nodes.0.readout.columns", 9),
    "a spread of nothing": ("nodes.0.readout.sigma", 0.0),
    "a text for a number": ("nodes.0.readout.mu", "0.5"),
    "theta between two edges": ("score.theta", 1.01),
    "theta out of range": ("score.theta", 4.0),
    "three tokens a session": ("k", 3),
    "other positions left out": ("skip_positions", 0),
    "stale written down": ("evidence", "stale"),
    "a gate of no finding": ("evidence", "used"),
}


@pytest.mark.parametrize(("path", "value"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_manifest_that_lies_is_refused(folder: Path, path: str, value: Any) -> None:
    fields = {path: value} if "." not in path else changed(path, value)
    seal(folder, **fields)
    assert refusal(folder) is ArtifactReason.BAD_MANIFEST


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(folder: Path, text: str) -> None:
    whole = (folder / MANIFEST).read_text()
    assert '"bias": 0.25' in whole
    (folder / MANIFEST).write_text(whole.replace('"bias": 0.25', f'"bias": {text}'))
    assert refusal(folder) is ArtifactReason.BAD_MANIFEST


def test_a_key_twice_is_refused(folder: Path) -> None:
    whole = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(whole.replace('"bias": 0.25', '"bias": 0.25, "bias": 0.3'))
    assert refusal(folder) is ArtifactReason.DUPLICATE_KEY


def test_theta_moved_by_hand_is_refused(folder: Path) -> None:
    whole = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(whole.replace('"theta": 1.0', '"theta": 2.0'))
    assert refusal(folder) is ArtifactReason.BAD_DIGEST


def test_files_that_are_too_large_are_refused_before_they_are_parsed(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(packed())
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(LIMIT_BYTES + 1)  # sparse
    assert refusal(folder) is ArtifactReason.TOO_LARGE
    (folder / MANIFEST).write_bytes(b" " * (MANIFEST_LIMIT_BYTES + 1))
    assert refusal(folder) is ArtifactReason.TOO_LARGE


def test_a_pickle_beside_it_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "weights.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    assert refusal(folder) is ArtifactReason.PICKLE
    assert not (tmp_path / "run").exists()


def test_a_way_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder) is ArtifactReason.UNSAFE_PATH


def test_a_crowded_folder_is_refused(folder: Path) -> None:
    for number in range(FOLDER_LIMIT_ENTRIES):
        (folder / f"{number}").touch()
    assert refusal(folder) is ArtifactReason.TOO_LARGE


def test_a_score_that_nothing_moves_does_not_pass_by_its_ratio(tmp_path: Path) -> None:
    still = findings()["validity"] | {"circuit": 1.0, "worst": 0.001, "ratio": 1000.0}
    about = save_circuit(tmp_path / "a", validated(validity=still), columns())
    assert about.failed == ("readout",)
