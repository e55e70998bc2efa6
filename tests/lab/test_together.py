"""Several layers read together: chosen when they are worth it, packed, and scored by the sidecar as the lab scores them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.artifact import load_artifact
from probes.auroc import auroc
from probes.cli import main
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Aggregation, AggregationKind
from probes.quality.calibration import calibrate
from probes.quality.evaluation import evaluate
from probes.quality.rows import rows_of, scores_of
from probes.quality.scaling import probabilities
from probes.release.compare import compare_stores
from probes.release.gate import Verdict, gate
from probes.release.pack import pack
from probes.release.transfer import Origin, export_probe, import_probe
from probes.reporting.report import write_report
from probes.serving import Served
from probes.stages import Candidate, Part, Training
from probes.training.choice import finalists, shortlist
from probes.training.search import Search
from probes.training.table import worth
from probes.training.train import train
from sidecar.types import TapPoint
from tests.lab.planted import planted_store
from tests.lab.sidecar_scores import sidecar_scores
from tests.lab.test_collect import write_data
from tests.tap.models import save_tiny

MEAN = Aggregation(kind=AggregationKind.MEAN)
ONE, TWO = TapPoint(1), TapPoint(2)
BOTH = (ONE, TWO)
SEARCH = Search(name="planted", kinds=("logistic", "mass_mean"), strengths=(0.01,), concatenate=())


def candidate(auroc: float, *layers: int, error: float = 0.02, kind: str = "logistic") -> Candidate:
    first, *others = (TapPoint(layer).name for layer in layers)
    return Candidate(
        tap_point=first, also=tuple(others), kind=kind, aggregation=MEAN, strength=1.0, auroc=auroc, error=error
    )


def test_several_layers_must_be_better_by_more_than_a_standard_error() -> None:
    alone = [candidate(0.88, 9), candidate(0.87, 4)]
    assert finalists([*alone, candidate(0.89, 4, 9)]) == (alone[1],)
    assert finalists([*alone, candidate(0.90, 4, 9)]) == (alone[0],)
    better = candidate(0.91, 4, 9)
    assert finalists([*alone, better]) == (better,)
    assert finalists([*alone, replace_layers(better, 4, 8, 9), better]) == (better,)


def replace_layers(one: Candidate, *layers: int) -> Candidate:
    return candidate(one.auroc, *layers)


def test_the_shortlist_is_of_single_layers() -> None:
    assert shortlist([candidate(0.9, 3), candidate(0.89, 2), candidate(0.95, 9)]) == (TapPoint(9), TapPoint(3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Blocks 1 and 2 each show half of the truth, under noise of their own: together they show more."""
    return planted_store(tmp_path_factory.mktemp("halves") / "acts", n=500, width=8, strength=1.2, seed=2)


@pytest.fixture(scope="module")
def draft(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    made, served = train(store, SEARCH)
    draft = Draft(tmp_path_factory.mktemp("draft") / "draft")
    draft.write_trained(made, served)
    draft.write(calibrate(draft, store))
    draft.write(evaluate(draft, store))
    return draft


@pytest.fixture(scope="module")
def artifact(draft: Draft) -> Path:
    pack(draft.folder, draft.folder.parent / "artifact", failed=True)
    return draft.folder.parent / "artifact"


def test_two_layers_that_add_to_each_other_are_chosen_and_what_that_brings_is_told(draft: Draft) -> None:
    made = draft.training
    assert made.everywhere == BOTH
    assert made.kind == "logistic"
    alone = max(one.auroc for one in made.candidates if not one.also)
    together = max(one.auroc for one in made.candidates if one.also)
    assert together > alone + 0.02
    brings, costs = worth(made)
    assert f"{together - alone:+.3f}" in brings
    assert brings.endswith(": taken.")
    assert "2 tap points" in costs


def test_a_layer_that_adds_nothing_is_not_taken(store: ActivationStore) -> None:
    search = replace(SEARCH, tap_points=(TapPoint(0), ONE))
    made, _ = train(store, search)
    assert made.everywhere == (ONE,)
    assert len(made.candidates) == search.count(store.facts)
    assert [one.everywhere for one in made.candidates if one.also] == [(TapPoint(0), ONE)] * 4
    (told,) = worth(made)
    assert told.endswith(": not taken.")


def test_layers_that_are_asked_for_are_taken_whatever_they_bring(store: ActivationStore) -> None:
    made, served = train(store, replace(SEARCH, concatenate=(TapPoint(0), ONE)))
    assert made.everywhere == (TapPoint(0), ONE)
    assert served.directions.shape == (16, 1)
    nothing, something = (np.linalg.norm(part.directions) for part in served.apart(2))
    assert nothing < something / 2
    brings, _ = worth(made)
    assert "not more than a standard error" in brings
    assert brings.endswith(": taken because it was asked for.")


def test_a_training_without_them_tells_nothing(store: ActivationStore) -> None:
    made, _ = train(store, replace(SEARCH, concatenate=None))
    assert list(worth(made)) == []
    assert not any(one.also for one in made.candidates)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (replace(SEARCH, concatenate=(ONE,)), "from 2 to 8"),
        (replace(SEARCH, concatenate=(ONE, ONE)), "each once"),
        (replace(SEARCH, tap_points=(ONE,)), "from 2 to 8"),
        (replace(SEARCH, concatenate=(ONE, TapPoint(7))), "no states of blocks.7"),
    ],
)
def test_tap_points_that_cannot_be_read_together_are_refused(
    store: ActivationStore, search: Search, words: str
) -> None:
    with pytest.raises(LabError, match=words):
        train(store, search)


def test_the_artifact_has_each_layers_directions_in_turn_and_comes_back_as_it_was(draft: Draft, artifact: Path) -> None:
    packed, served = load_artifact(artifact, root=artifact), draft.served
    about = packed.manifest
    assert about.everywhere == BOTH
    assert about.feature_contract.hook_point == "residual stream after block 1; residual stream after block 2"
    assert packed.directions.shape == (8, 2)
    assert np.array_equal(packed.directions.T.ravel(), served.directions[:, 0])
    assert packed.offsets.tolist() == [served.offsets[0], 0.0]
    again = Served.of(packed)
    assert np.array_equal(again.directions, served.directions)
    assert np.array_equal(again.offsets, served.offsets)


def test_heads_of_several_layers_are_laid_out_by_layer() -> None:
    heads = Aggregation(kind=AggregationKind.MULTIMAX, heads=3)
    served = Served(np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(3, dtype=np.float32), heads)
    first, second = served.apart(2)
    rows = np.random.default_rng(0).normal(size=(5, 8))
    assert np.allclose(first.read(rows[:, :4]) + second.read(rows[:, 4:]), served.read(rows))
    assert np.signbit(second.offsets).sum() == 0


def test_the_sidecar_scores_it_as_the_lab_does(draft: Draft, artifact: Path, store: ActivationStore) -> None:
    rows = rows_of(store, draft.training, Part.TEST)
    lab = probabilities(draft.calibrated.calibration, scores_of(draft.served, store, BOTH, rows))
    served = sidecar_scores(artifact, store, rows.at)
    assert [one.score for one in served] == pytest.approx(lab.tolist(), abs=1e-6)
    assert [one.readings for one in served] == rows.tokens.tolist()
    assert auroc(np.array([one.score for one in served]), rows.labels) > 0.8


def test_gate_and_report_and_inspect_carry_it(
    draft: Draft, artifact: Path, store: ActivationStore, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path
) -> None:
    pair = compare_stores(load_artifact(artifact, root=artifact), store, store)
    assert gate(pair).verdict in {Verdict.PASS, Verdict.INCONCLUSIVE}
    lab = draft.served.scores([np.hstack([store.read(text, where) for where in BOTH]) for text in range(len(store))])
    assert np.allclose(pair.reference.scores, lab)
    write_report(draft.folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "blocks.1.resid_post + blocks.2.resid_post" in page
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["inspect", str(artifact)]) == 0
    assert "blocks.1.resid_post + blocks.2.resid_post" in capsys.readouterr().out


def test_another_layer_beside_it_is_another_contract(draft: Draft, artifact: Path, store: ActivationStore) -> None:
    other = Draft(artifact.parent / "other")
    other.write_trained(*train(store, replace(SEARCH, concatenate=(TapPoint(0), ONE))))
    other.write(calibrate(other, store))
    other.write(evaluate(other, store))
    made = pack(other.folder, artifact.parent / "next", previous=artifact, failed=True)
    assert made.version == "2.0.0"
    again = pack(draft.folder, artifact.parent / "again", previous=artifact, failed=True)
    assert again.version == "1.0.0"


@pytest.mark.parametrize("form", ["safetensors", "npz", "steering"])
def test_a_format_of_one_layer_refuses_it_and_says_why(artifact: Path, tmp_path: Path, form: str) -> None:
    with pytest.raises(
        LabError, match=r"blocks\.1\.resid_post \+ blocks\.2\.resid_post together, and .* one tap point"
    ):
        export_probe(artifact, form, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_scikit_learn_holds_it_as_rows_side_by_side(
    draft: Draft, artifact: Path, store: ActivationStore, tmp_path: Path
) -> None:
    export_probe(artifact, "sklearn", tmp_path / "file")
    origin = Origin("back", BOTH, draft.training.aggregation)
    made = import_probe(tmp_path / "file", "sklearn", store, origin, tmp_path / "back")
    assert isinstance(made, Training)
    assert made.everywhere == BOTH
    assert np.allclose(Draft(tmp_path / "back").served.directions, draft.served.directions)
    arguments = ["import", str(tmp_path / "file"), "--from", "sklearn", "--acts", str(store.folder), "--name", "x"]
    asked = ["--into", str(tmp_path / "cli"), "--aggregation", "mean", "--tap-point"]
    assert main([*arguments, *asked, "blocks.1.resid_post,blocks.2.resid_post"]) == 0
    assert Draft(tmp_path / "cli").training.everywhere == BOTH
    assert main([*arguments, *asked, "blocks.1.resid_post,blocks.1.resid_post"]) == 1
    assert main([*arguments, *asked, "blocks.1.resid_post"]) == 1


@pytest.mark.process
def test_from_texts_to_the_sidecar_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "tiny")
    data, acts, made, artifact = write_data(tmp_path, 200), *(tmp_path / name for name in ("acts", "mood", "artifact"))
    steps = [
        ["collect", "--data", data, "--model", str(model), "--into", str(acts), "--layers", "1,2", "--processes", "1"],
        ["train", str(acts), "--into", str(made), "--kinds", "logistic", "--concatenate", "1,2"],
        ["calibrate", str(made), "--fpr", "0.2"],
        ["evaluate", str(made)],
        ["report", str(made)],
        ["pack", str(made), "--into", str(artifact), "--failed"],
    ]
    for step in steps:
        assert main(step) == 0, capsys.readouterr().err
    assert "2 tap points" in capsys.readouterr().out
    draft, store = Draft(made), ActivationStore.open(acts)
    rows = rows_of(store, draft.training, Part.TEST)
    lab = probabilities(draft.calibrated.calibration, scores_of(draft.served, store, BOTH, rows))
    assert np.ptp(lab) > 1e-3
    served = sidecar_scores(artifact, store, rows.at)
    assert [one.score for one in served] == pytest.approx(lab.tolist(), abs=1e-6)
