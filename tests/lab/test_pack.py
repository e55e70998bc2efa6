"""Packing: the manifest says what the stages found, and nothing that failed gets out unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.artifact import load_artifact
from probes.cli import main
from probes.errors import LabError
from probes.manifest import Aggregation, Calibration
from probes.release.pack import pack
from probes.serving import Served
from probes.stages import Calibrated, Evaluated, Gate
from sidecar.config import load_config
from sidecar.reload import load_artifacts
from sidecar.types import Evidence
from tests.lab.drafts import FAILED, NOT_USED, PASSED, calibration, evaluation, limit, make_draft, served_probe, trained
from tests.lab.planted import planted_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("pack") / "acts", n=40)


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return tmp_path / "draft"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "planted_truth"


def test_what_was_found_stands_in_the_manifest(draft, into, store):
    made = make_draft(draft, store)
    pack(draft, into)
    artifact = load_artifact(into, root=into)
    about, facts = artifact.manifest, store.facts
    assert (about.name, about.version, about.evidence) == ("planted_truth", "1.0.0", Evidence.USED)
    assert about.model == facts.model
    assert about.feature_contract.hook_point == facts.hook_points[about.tap_point]
    assert (about.feature_contract.width, about.feature_contract.skip_positions) == (16, 1)
    assert about.training_data.digest == facts.data_digest
    assert about.training_data.rows == 40
    assert about.training_data.name.endswith("train / select / calibrate / test: 16 / 8 / 8 / 8")
    assert about.calibration == Calibration(kind="temperature", scale=1.7)
    assert (about.threshold.probability, about.threshold.buckets) == (0.8, ())
    assert (about.quality.auroc, about.quality.best_baseline, about.quality.gain) == (0.926, "tfidf_char", 0.119)
    assert about.quality.verdict.startswith("Page on it.")
    assert [gate.name for gate in about.gates] == [
        "beats_text",
        "shuffled_labels",
        "threshold",
        "behaves",
        "needed",
        "sufficient",
    ]
    assert [(one.name, one.effect, one.p_value) for one in about.validation.interventions] == [
        ("ablate", -0.053, 0.048),
        ("steer", 0.12, 0.048),
    ]
    assert np.array_equal(artifact.directions, made.served.directions)
    assert np.array_equal(artifact.offsets, made.served.offsets)


def test_the_service_loads_what_was_packed(draft, into, store):
    make_draft(draft, store)
    pack(draft, into)
    config = load_config(env={}, flags={"artifacts.folder": str(into.parent)})
    assert [one.manifest.name for one in load_artifacts(config)] == ["planted_truth"]


def test_the_same_draft_gives_the_same_bytes(draft, tmp_path, store):
    make_draft(draft, store)
    for name in ("one", "two"):
        pack(draft, tmp_path / name)
    for file in ("manifest.json", "weights.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


EVIDENCE = {
    "used": ({}, Evidence.USED),
    "readable, not used": ({"validated": {"gates": NOT_USED}}, Evidence.DECODABLE),
    "not validated": ({"stages": "ce"}, Evidence.DECODABLE),
    "evidence is never typed": ({"validated": {"gates": NOT_USED, "evidence": Evidence.USED}}, Evidence.DECODABLE),
}


@pytest.mark.parametrize(("changes", "evidence"), EVIDENCE.values(), ids=EVIDENCE.keys())
def test_evidence_comes_from_the_gates(draft, into, store, changes, evidence):
    make_draft(draft, store, **changes)
    assert pack(draft, into).evidence is evidence


def test_a_validation_of_an_earlier_training_is_no_evidence(draft, into, store):
    made = make_draft(draft, store)
    made.write(trained(store, seed=1))
    made.write(calibration())
    made.write(evaluation())
    manifest = pack(draft, into)
    assert (manifest.evidence, manifest.validation) == (Evidence.DECODABLE, None)


def test_a_failed_gate_is_not_packed_unless_it_is_said(draft, into, store):
    make_draft(draft, store, evaluated={"gates": (*PASSED, FAILED)})
    with pytest.raises(LabError, match="not_length: Among texts of like length"):
        pack(draft, into)
    assert not into.exists()
    manifest = pack(draft, into, failed=True)
    assert manifest.quality.verdict == f"FAILED: {FAILED.text}"
    assert [gate.name for gate in manifest.gates if not gate.passed] == ["not_length"]


def test_without_beating_text_there_is_no_evidence_however_it_is_packed(draft, into, store):
    lost = FAILED.model_copy(update={"name": "beats_text"})
    make_draft(draft, store, stages="ce", evaluated={"gates": (lost, *PASSED[1:])})
    assert pack(draft, into, failed=True).evidence is Evidence.UNVERIFIED


def test_thresholds_by_length_become_buckets(draft, into, store):
    rolling = Aggregation(kind="max_rolling_mean", window=5)
    made = make_draft(draft, store, stages="", aggregation=rolling)
    made.write(calibration(thresholds=(limit(0, 0.8), limit(16, 0.85), limit(64, 0.9, certified=False))))
    made.write(evaluation())
    threshold = pack(draft, into).threshold
    assert threshold.probability == 0.8
    assert [(one.min_tokens, one.probability, one.certified) for one in threshold.buckets] == [
        (16, 0.85, True),
        (64, 0.9, False),
    ]


def test_a_probe_of_several_directions_is_packed(draft, into, store):
    make_draft(draft, store, aggregation=Aggregation(kind="multimax", heads=3))
    pack(draft, into)
    assert load_artifact(into, root=into).directions.shape == (16, 3)


REFUSED = {
    "no calibration": ("", {}, "probes calibrate"),
    "no evaluation": ("c", {}, "probes evaluate"),
    "a name that is none": ("ce", {"name": "Two Words"}, "cannot name an artifact"),
    "a store that is gone": ("ce", {"store": "/nowhere"}, "are gone"),
    "a tap point of another width": ("ce", {"tap_point": "blocks.7.resid_post"}, "features"),
}


@pytest.mark.parametrize(("stages", "changes", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_packed_says_why_and_leaves_nothing(draft, into, store, stages, changes, text):
    make_draft(draft, store, stages=stages, **changes)
    with pytest.raises(LabError, match=text):
        pack(draft, into)
    assert not into.exists()


def test_an_isotonic_calibration_travels_with_its_table(draft, into, store):
    made, table = make_draft(draft, store, stages=""), Calibration(kind="isotonic", knots=((0.0, 0.1), (1.0, 0.9)))
    made.write(calibration(calibration=table))
    made.write(evaluation())
    pack(draft, into)
    assert load_artifact(into, root=into).manifest.calibration == table


def test_an_evaluation_before_the_last_calibration_does_not_count(draft, into, store):
    made = make_draft(draft, store, stages="ce")
    made.write(calibration(0.7))
    with pytest.raises(LabError, match="evaluation no longer counts"):
        pack(draft, into)


def test_texts_that_a_manifest_cannot_carry_are_made_plain(draft, into, store):
    gate = Gate(name="not_length", passed=True, text="two\nlines\x1b[31m" + "x" * 3000)
    make_draft(draft, store, description="a\nb", evaluated={"gates": (*PASSED, gate)})
    pack(draft, into)
    told = load_artifact(into, root=into).manifest
    assert told.description == "a b"
    assert told.gates[3].text.startswith("two lines[31mxxx")
    assert len(told.gates[3].text) == 2000


def change_calibration(draft, store):
    make_draft(draft, store, threshold=0.7)


def change_weights(draft, store):
    made = make_draft(draft, store)
    served = made.served
    made.write_trained(made.training, Served(served.directions * 2, served.offsets, served.aggregation))
    for stage in (calibration(), evaluation()):
        made.write(stage)


def change_aggregation(draft, store):
    made = make_draft(draft, store)
    made.write_trained(trained(store, aggregation=Aggregation(kind="last")), served_probe(16))
    for stage in (calibration(), evaluation()):
        made.write(stage)


def change_tap_point(draft, store):
    make_draft(draft, store, tap_point="blocks.2.resid_post")


def change_labels(draft, store):
    make_draft(draft, store, positive_label="not there", negative_label="there")


VERSIONS = {
    "nothing": (make_draft, "1.0.0"),
    "threshold": (change_calibration, "1.0.1"),
    "weights": (change_weights, "1.1.0"),
    "aggregation": (change_aggregation, "1.1.0"),
    "tap point": (change_tap_point, "2.0.0"),
    "what firing means": (change_labels, "2.0.0"),
}


@pytest.mark.parametrize(("change", "version"), VERSIONS.values(), ids=VERSIONS.keys())
def test_the_version_says_what_has_changed(draft, into, store, change, version):
    make_draft(draft, store)
    pack(draft, into)
    change(draft, store)
    assert pack(draft, into, previous=into).version == version


def test_a_version_too_low_for_the_change_is_refused_and_a_higher_one_is_taken(draft, into, store):
    make_draft(draft, store)
    pack(draft, into, version="1.4.2")
    change_weights(draft, store)
    with pytest.raises(LabError, match=r"1\.4\.3 is too low.*1\.5\.0"):
        pack(draft, into, previous=into, version="1.4.3")
    assert pack(draft, into, previous=into, version="3.0.0").version == "3.0.0"


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "01.0.0", "1.0.0-rc1"])
def test_a_version_that_is_none_is_refused(draft, into, store, version):
    make_draft(draft, store)
    with pytest.raises(LabError, match="not a version"):
        pack(draft, into, version=version)


def test_an_artifact_is_never_overwritten_by_accident(draft, into, store):
    make_draft(draft, store)
    pack(draft, into)
    before = (into / "manifest.json").read_bytes()
    change_calibration(draft, store)
    with pytest.raises(LabError, match="an artifact already"):
        pack(draft, into)
    assert (into / "manifest.json").read_bytes() == before


def test_the_version_before_must_be_of_the_same_probe(draft, into, tmp_path, store):
    make_draft(draft, store)
    pack(draft, into)
    make_draft(draft, store, name="other_name")
    with pytest.raises(LabError, match="it is called planted_truth, and this one other_name"):
        pack(draft, tmp_path / "other", previous=into)


def test_the_command_packs_and_shows_the_artifact(draft, into, store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    make_draft(draft, store)
    assert main(["pack", str(draft), "--into", str(into), "--licence", "CC0-1.0"]) == 0
    shown = capsys.readouterr().out
    for text in ("planted_truth 1.0.0", "all 6 gates passed", "not signed"):
        assert text in shown
    assert json.loads((into / "manifest.json").read_text())["licence"] == "CC0-1.0"
    assert main(["pack", str(draft), "--into", str(into)]) == 1
    assert "an artifact already" in capsys.readouterr().err


def test_stages_without_text_baselines_say_nothing_of_what_the_probe_adds(draft, into, store):
    made = make_draft(draft, store)
    made.write(evaluation(rivals=()))
    assert isinstance(made.stage(Evaluated), Evaluated)
    assert isinstance(made.stage(Calibrated), Calibrated)
    with pytest.raises(LabError, match="no text baselines"):
        pack(draft, into)
