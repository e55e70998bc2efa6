"""To other tools and back: the readings are the same, and what a format cannot hold is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.cli import main
from probes.commands.transfer import FORMS
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Aggregation
from probes.release.pack import pack
from probes.release.transfer import FORMATS, Origin, export_probe, import_probe
from probes.stages import Part
from sidecar.types import TapPoint
from tests.lab.drafts import calibration, evaluation, limit, make_draft
from tests.lab.planted import planted_store
from tests.lab.transfers import TAP, packed, save_npz

MEAN = Aggregation(kind="mean")
ORIGIN = Origin("imported", (TAP,), MEAN)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("transfer") / "acts", n=120)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, store: ActivationStore) -> Path:
    return packed(tmp_path_factory.mktemp("artifact"), store)


def scores(folder: Path, store: ActivationStore) -> Any:
    return Draft(folder).served.scores(store.at(TAP))


def test_the_command_knows_every_format():
    assert set(FORMS) == set(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back_the_readings_are_the_same(tmp_path, artifact, store, form):
    export_probe(artifact, form, tmp_path / "file")
    made = import_probe(tmp_path / "file", form, store, ORIGIN, tmp_path / "draft")
    want = Draft(artifact.parent / "draft").served.scores(store.at(TAP))
    np.testing.assert_allclose(scores(tmp_path / "draft", store), want, rtol=1e-5, atol=1e-5)
    assert made.select_auroc > 0.9
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


@pytest.mark.parametrize("form", ["safetensors", "npz", "steering"])
def test_what_the_file_says_need_not_be_said_again(tmp_path, artifact, store, form):
    export_probe(artifact, form, tmp_path / "file")
    made = import_probe(tmp_path / "file", form, store, Origin("imported"), tmp_path / "draft")
    assert (made.tap_point, made.aggregation) == (TAP.name, MEAN)


def test_what_the_file_says_cannot_be_contradicted(tmp_path, artifact, store):
    export_probe(artifact, "safetensors", tmp_path / "file")
    with pytest.raises(LabError, match=r"tap point is blocks\.1\.resid_post, not blocks\.2\.resid_post"):
        import_probe(tmp_path / "file", "safetensors", store, Origin("imported", (TapPoint(2),)), tmp_path / "draft")


def test_what_neither_says_is_asked_for(tmp_path, artifact, store):
    export_probe(artifact, "sklearn", tmp_path / "file")
    with pytest.raises(LabError, match="does not say its tap point"):
        import_probe(tmp_path / "file", "sklearn", store, Origin("imported"), tmp_path / "draft")
    assert not (tmp_path / "draft").exists()


def test_an_imported_draft_goes_on_through_the_lab(tmp_path, artifact, store):
    export_probe(artifact, "npz", tmp_path / "file")
    made = import_probe(tmp_path / "file", "npz", store, ORIGIN, tmp_path / "draft")
    assert {Part.CALIBRATE, Part.TEST} <= set(made.parts)
    draft = Draft(tmp_path / "draft")
    draft.write(calibration())
    draft.write(evaluation())
    assert pack(tmp_path / "draft", tmp_path / "again").name == "imported"


def test_several_directions_travel_as_tensors(tmp_path, store):
    artifact = packed(tmp_path, store, aggregation=Aggregation(kind="multimax", heads=3))
    export_probe(artifact, "safetensors", tmp_path / "file")
    made = import_probe(tmp_path / "file", "safetensors", store, Origin("imported"), tmp_path / "back")
    assert made.kind == "multimax"
    assert np.array_equal(scores(tmp_path / "back", store), scores(tmp_path / "draft", store))
    for form in ("sklearn", "npz", "steering"):
        with pytest.raises(LabError, match="3"):
            export_probe(artifact, form, tmp_path / form)
        assert not (tmp_path / form).exists()


@pytest.mark.parametrize("form", ["sklearn", "npz"])
def test_a_score_that_no_single_row_has_is_not_exported_as_if_it_had(tmp_path, store, form):
    artifact = packed(tmp_path, store, aggregation=Aggregation(kind="max_rolling_mean", window=5))
    with pytest.raises(LabError, match="max_rolling_mean"):
        export_probe(artifact, form, tmp_path / form)


def test_scikit_learn_reads_what_we_read(tmp_path, artifact, store):
    import skops.io

    export_probe(artifact, "sklearn", tmp_path / "file")
    model = skops.io.load(tmp_path / "file", trusted=[])
    pooled = np.stack([rows.astype(np.float64).mean(axis=0) for rows in store.at(TAP)])
    want = Draft(artifact.parent / "draft").served.scores(store.at(TAP))
    np.testing.assert_allclose(model.decision_function(pooled), want, rtol=1e-6)
    assert np.array_equal(model.predict(pooled), want > 0)


def test_a_standardised_pipeline_is_folded_into_one_direction(tmp_path, store):
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled = np.stack([rows.mean(axis=0) for rows in store.at(TAP)]).astype(np.float64) * 7 + 3
    labels = [text.label for text in store.texts]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(pooled, labels)
    skops.io.dump(model, tmp_path / "file")
    found = FORMATS["sklearn"].read(tmp_path / "file")
    np.testing.assert_allclose(
        pooled @ found.directions[:, 0] + found.offsets[0], model.decision_function(pooled), rtol=1e-4
    )


def test_the_npz_decides_as_the_artifact_does(tmp_path, artifact, store):
    """By the format's own formula, and its threshold on the sigmoid."""
    from probes.artifact import load_artifact

    export_probe(artifact, "npz", tmp_path / "file")
    with np.load(tmp_path / "file", allow_pickle=False) as file:
        told = json.loads(str(file["metadata"]))
        pooled = np.stack([rows.mean(axis=0) for rows in store.at(TAP)])
        logits = (pooled - file["mean"]) / file["std"] @ file["weights"] + file["bias"]
    about = load_artifact(artifact, root=artifact).manifest
    own = Draft(artifact.parent / "draft").served.scores(store.at(TAP))
    fires = 1 / (1 + np.exp(-(about.calibration.scale * own + about.calibration.offset))) > about.threshold.probability
    assert 0 < fires.sum() < len(fires)
    assert np.array_equal(1 / (1 + np.exp(-logits)) > told["threshold"], fires)
    assert (told["format_version"], told["target_fpr"]) == (1, 0.05)


def test_thresholds_by_length_do_not_fit_into_a_format_with_one(tmp_path, store):
    make_draft(tmp_path / "draft", store, stages="")
    Draft(tmp_path / "draft").write(calibration(thresholds=(limit(0, 0.8), limit(16, 0.9))))
    Draft(tmp_path / "draft").write(evaluation())
    pack(tmp_path / "draft", tmp_path / "artifact")
    with pytest.raises(LabError, match="thresholds by length"):
        export_probe(tmp_path / "artifact", "npz", tmp_path / "file")


def test_standardisation_in_an_npz_is_folded_in(tmp_path):
    random = np.random.default_rng(0)
    weights, mean, std, rows = (
        random.normal(size=8),
        random.normal(size=8),
        random.uniform(0.5, 2, 8),
        random.normal(size=(5, 8)),
    )
    save_npz(tmp_path / "file", weights=weights, mean=mean, std=std, bias=np.float64(0.7))
    found = FORMATS["npz"].read(tmp_path / "file")
    want = (rows - mean) / std @ weights + 0.7
    np.testing.assert_allclose(rows @ found.directions[:, 0] + found.offsets[0], want, rtol=1e-5)


def test_the_weight_of_a_torch_linear_is_taken_too(tmp_path):
    from safetensors.numpy import save_file

    weight = np.arange(1, 5, dtype=np.float32)[None, :]
    save_file({"weight": weight, "bias": np.array([0.5], np.float32)}, tmp_path / "file")
    found = FORMATS["safetensors"].read(tmp_path / "file")
    assert found.directions.tolist() == [[1.0], [2.0], [3.0], [4.0]]
    assert found.offsets.tolist() == [0.5]


@pytest.mark.parametrize("scale", [0.5, 8.0, -2.0])
def test_a_steering_vector_has_the_length_that_was_asked_for_and_still_reads_the_same(tmp_path, artifact, store, scale):
    from gguf import GGUFReader

    export_probe(artifact, "steering", tmp_path / "file", scale=scale)
    reader = GGUFReader(tmp_path / "file")
    (tensor,) = reader.tensors
    assert (tensor.name, reader.get_field("general.architecture").contents()) == ("direction.1", "controlvector")
    assert np.linalg.norm(tensor.data) == pytest.approx(abs(scale), rel=1e-6)
    want = Draft(artifact.parent / "draft").served.directions[:, 0]
    assert float(tensor.data @ want) * scale > 0
    import_probe(tmp_path / "file", "steering", store, Origin("imported"), tmp_path / "draft")
    np.testing.assert_allclose(Draft(tmp_path / "draft").served.directions[:, 0], want, rtol=1e-5, atol=1e-7)


def test_there_is_no_steering_vector_for_block_0(tmp_path, store):
    artifact = packed(tmp_path, store, tap_point="blocks.0.resid_post")
    with pytest.raises(LabError, match="block 1 or later"):
        export_probe(artifact, "steering", tmp_path / "file")


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_that_steers_nowhere_is_refused(tmp_path, artifact, scale):
    with pytest.raises(LabError, match="scale"):
        export_probe(artifact, "steering", tmp_path / "file", scale=scale)


def test_a_scale_is_for_steering_alone(tmp_path, artifact):
    with pytest.raises(LabError, match="not for npz"):
        export_probe(artifact, "npz", tmp_path / "file", scale=2.0)


MISFITS = {
    "width": (Origin("imported", (TAP,), MEAN), np.ones(5), "5 features.*has 16"),
    "tap point": (Origin("imported", (TapPoint(9),), MEAN), np.ones(16), r"has no blocks\.9\.resid_post"),
    "directions": (
        Origin("imported", (TAP,), Aggregation(kind="attention")),
        np.ones(16),
        "1 directions, and attention takes 2",
    ),
}


@pytest.mark.parametrize(("origin", "w", "text"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_the_store_is_refused(tmp_path, store, origin, w, text):
    from safetensors.numpy import save_file

    save_file({"w": w.astype(np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "file")
    with pytest.raises(LabError, match=text):
        import_probe(tmp_path / "file", "safetensors", store, origin, tmp_path / "draft")
    assert not (tmp_path / "draft").exists()


def test_the_commands_go_there_and_back(tmp_path, artifact, store, capsys):
    file = tmp_path / "probe.npz"
    assert main(["export", str(artifact), "--to", "npz", "--into", str(file)]) == 0
    given_back = ["import", str(file), "--from", "npz", "--acts", str(store.folder), "--into", str(tmp_path / "draft")]
    assert main([*given_back, "--name", "back"]) == 0
    assert Draft(tmp_path / "draft").training.name == "back"
    assert main([*given_back, "--name", "back", "--aggregation", "last"]) == 1
    assert "its aggregation is mean, not last" in capsys.readouterr().err
    assert main([*given_back, "--name", "back", "--aggregation", "loudest"]) == 1
    assert main([*given_back, "--name", "back", "--window", "3"]) == 1
    assert main(["export", str(tmp_path), "--to", "npz", "--into", str(file)]) == 1
    assert main(["export", str(artifact), "--to", "npz", "--into", str(tmp_path / "no" / "where")]) == 1


def test_an_export_replaces_a_file_whole_or_leaves_it(tmp_path, artifact, monkeypatch):
    (tmp_path / "file").write_bytes(b"before")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(LabError, match="No space left"):
        export_probe(artifact, "npz", tmp_path / "file")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"
