"""A direction that the model uses is told from one that can only be read; on a model whose workings are known."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from probes.activations.model import LabModel
from probes.activations.store import ActivationStore
from probes.causal.behaviour import Behaviour, Measure
from probes.causal.case import Settings, open_case
from probes.causal.directions import Null
from probes.causal.evidence import weigh
from probes.causal.validation import KEPT, validate
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Aggregation, AggregationKind
from probes.stages import Gate, Validated
from sidecar.types import Evidence, Site, TapPoint
from tests.lab.drafts import PASSED, calibration, evaluation
from tests.lab.toy import ANSWER, BLOCKS, TAP, UNUSED, USED, WIDTH, axis, toy_draft, toy_model, toy_store, toy_texts

SETTINGS = Settings(texts=40, randoms=19)  # the fewest of both that can show anything


@pytest.fixture(scope="module")
def lab() -> LabModel:
    return toy_model()


@pytest.fixture(scope="module")
def store(lab: LabModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return toy_store(tmp_path_factory.mktemp("toy") / "acts", lab, toy_texts())


def run(draft: Draft, lab: LabModel, settings: Settings = SETTINGS, **more: Any) -> Validated:
    with Progress(disable=True) as bars:
        return validate(draft, lab, settings, bars, **more)


def by_name(found: Validated) -> dict[str, Any]:
    return {one.name: one for one in found.interventions}


def gate(found: Validated, name: str) -> Gate:
    return next(one for one in found.gates if one.name == name)


@pytest.fixture(scope="module")
def used(lab: LabModel, store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Draft, Validated]:
    draft = toy_draft(tmp_path_factory.mktemp("used") / "draft", store, axis(USED))
    return draft, run(draft, lab)


def test_a_direction_that_the_model_uses_passes_everything(used: tuple[Draft, Validated]) -> None:
    draft, found = used
    assert found.evidence is Evidence.USED
    assert {name: one.passed for name, one in by_name(found).items()} == dict.fromkeys(
        ["ablate", "patch", "steer_2sd", "ablate_after", "erase"], True
    )
    assert all(len(one.random_effects) == 19 for one in found.interventions)
    assert all(one.passed for one in found.gates)
    assert found.not_run == ()
    assert draft.stage(Validated) == found
    assert not (draft.folder / KEPT).exists()


@pytest.fixture(scope="module")
def unused(lab: LabModel, store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Validated:
    return run(toy_draft(tmp_path_factory.mktemp("unused") / "draft", store, axis(UNUSED)), lab)


def test_a_direction_that_can_only_be_read_fails(unused: Validated) -> None:
    assert unused.evidence is Evidence.UNVERIFIED
    passed = {name for name, one in by_name(unused).items() if one.passed}
    assert passed <= {"erase"}  # which takes out the whole concept, and with it what the model uses
    assert gate(unused, "behaves").passed
    assert not gate(unused, "needed").passed
    assert not gate(unused, "sufficient").passed


def test_a_direction_that_points_the_other_way_is_not_used(
    lab: LabModel, store: ActivationStore, tmp_path: Path
) -> None:
    """Steering up would make the model say the opposite of what the probe reads."""
    found = by_name(run(toy_draft(tmp_path / "draft", store, axis(USED, sign=-1.0)), lab))
    assert found["steer_2sd"].effect < 0
    assert not found["steer_2sd"].passed


def test_evidence_of_an_unused_direction_is_what_the_evaluation_has_shown(unused: Validated) -> None:
    assert weigh(unused.gates, evaluation()) is Evidence.DECODABLE
    for number in range(2):  # text baselines, shuffled labels
        gates = [one.model_copy(update={"passed": at != number}) for at, one in enumerate(PASSED)]
        assert weigh(unused.gates, evaluation(gates=tuple(gates))) is Evidence.UNVERIFIED
    assert weigh(unused.gates, evaluation(gates=PASSED[:1])) is Evidence.UNVERIFIED
    assert weigh(unused.gates, None) is Evidence.UNVERIFIED


@pytest.mark.parametrize("missing", ["behaves", "needed", "sufficient"])
def test_evidence_is_used_only_if_all_three_gates_passed(used: tuple[Draft, Validated], missing: str) -> None:
    gates = used[1].gates
    assert weigh(gates, None) is Evidence.USED
    failed = [one.model_copy(update={"passed": one.passed and one.name != missing}) for one in gates]
    assert weigh(failed, None) is Evidence.UNVERIFIED


def test_an_evaluation_is_asked_when_the_draft_is_validated(
    lab: LabModel, store: ActivationStore, tmp_path: Path
) -> None:
    draft = toy_draft(tmp_path / "draft", store, axis(UNUSED))
    draft.write(calibration())
    draft.write(evaluation())
    ticks = itertools.count()
    found = run(draft, lab, replace(SETTINGS, budget_s=1.0), clock=lambda: float(next(ticks)))
    assert found.interventions == ()
    assert found.evidence is Evidence.DECODABLE


def test_a_model_that_does_not_answer_differently_uses_nothing(
    lab: LabModel, store: ActivationStore, tmp_path: Path
) -> None:
    """The head says neither yes nor no, whatever the text."""
    asked = Behaviour(template="{text}", positive=(" yes",), negative=(" no",))
    found = run(toy_draft(tmp_path / "draft", store, axis(USED)), lab, replace(SETTINGS, behaviour=asked))
    assert found.behaviour_auroc == pytest.approx(0.5)
    assert not gate(found, "behaves").passed
    assert found.evidence is Evidence.UNVERIFIED


def test_the_task_score_tells_the_same(lab: LabModel, store: ActivationStore, tmp_path: Path) -> None:
    asked = Behaviour(template="{text}", positive=(" positive",), negative=(" negative",), measure=Measure.AUROC)
    found = run(toy_draft(tmp_path / "draft", store, axis(USED)), lab, replace(SETTINGS, behaviour=asked))
    assert found.evidence is Evidence.USED
    assert found.behaviour.startswith("On 40 test texts, AUROC")
    assert 0.3 < by_name(found)["ablate"].effect < 0.7


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    lab: LabModel, store: ActivationStore, tmp_path: Path, used: tuple[Draft, Validated]
) -> None:
    again, other = (
        run(toy_draft(tmp_path / name, store, axis(USED)), lab, replace(SETTINGS, seed=seed))
        for name, seed in (("again", 0), ("other", 1))
    )
    assert again.interventions == used[1].interventions
    assert other.interventions != used[1].interventions


def test_a_spent_budget_names_what_was_not_run_and_the_next_call_ends_with_the_same_numbers(
    lab: LabModel, store: ActivationStore, tmp_path: Path, used: tuple[Draft, Validated]
) -> None:
    whole = used[1]
    draft = toy_draft(tmp_path / "short", store, axis(USED))
    ticks = itertools.count()
    found = run(draft, lab, replace(SETTINGS, budget_s=60.0), clock=lambda: float(next(ticks)))
    assert [one.name for one in found.interventions] == ["ablate"]
    assert [text.split(":")[0] for text in found.not_run] == ["patch", "steer_2sd", "ablate_after", "erase"]
    assert found.evidence is Evidence.UNVERIFIED
    assert found.interventions[0] == whole.interventions[0]
    done = len((draft.folder / KEPT).read_text().splitlines()) - 1
    assert done >= 20
    finished = run(draft, lab)
    assert finished.interventions == whole.interventions
    assert finished.evidence is Evidence.USED


def test_passes_of_another_direction_are_not_taken_up(lab: LabModel, store: ActivationStore, tmp_path: Path) -> None:
    draft = toy_draft(tmp_path / "draft", store, axis(USED))
    case = open_case(draft, lab, SETTINGS)
    asked = case.questions()
    other = open_case(toy_draft(tmp_path / "other", store, axis(UNUSED)), lab, SETTINGS)
    assert case.fingerprint(asked) != other.fingerprint(asked)
    seeded = open_case(draft, lab, replace(SETTINGS, seed=1))
    assert case.fingerprint(asked) != seeded.fingerprint(asked)
    assert case.fingerprint(asked) == open_case(draft, lab, replace(SETTINGS, budget_s=1.0)).fingerprint(asked)


def test_minimal_pairs_are_patched_from_each_other(lab: LabModel, tmp_path: Path) -> None:
    store = toy_store(tmp_path / "acts", lab, toy_texts(pairs=True))
    found = by_name(run(toy_draft(tmp_path / "draft", store, axis(USED)), lab))
    assert "20 minimal pairs" in found["patch"].text
    assert found["patch"].passed


def test_several_heads_are_taken_out_together(lab: LabModel, store: ActivationStore, tmp_path: Path) -> None:
    """One of two heads reads what the model uses; random rivals have two dimensions too."""
    heads = np.stack([axis(UNUSED), axis(USED)], axis=1)
    two = Aggregation(kind=AggregationKind.MULTIMAX, heads=2)
    draft = toy_draft(tmp_path / "draft", store, heads, two)
    with Progress(disable=True) as bars:
        bench, _ = open_case(draft, lab, SETTINGS).bench(bars)
    (stand,) = bench.stands
    assert stand.probe.rank == stand.basis(0).shape[1] == 2
    assert run(draft, lab).evidence is Evidence.USED


TWO = (TAP, TapPoint(2))


@pytest.fixture(scope="module")
def two(lab: LabModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return toy_store(tmp_path_factory.mktemp("two") / "acts", lab, toy_texts(), *TWO[:1], TWO[1:])


def of_two(folder: Path, store: ActivationStore, first: int, second: int) -> Draft:
    return toy_draft(folder, store, np.concatenate([axis(first), axis(second)]), where=TWO[0], also=TWO[1:])


def test_a_probe_of_two_layers_is_changed_at_both(lab: LabModel, two: ActivationStore, tmp_path: Path) -> None:
    """Block 1's states carry what block 2 reads, and block 2's what it has put for the head to see."""
    found = run(of_two(tmp_path / "draft", two, USED, ANSWER), lab)
    assert found.evidence is Evidence.USED
    passed = {name for name, one in by_name(found).items() if one.passed}
    assert passed >= {
        "ablate",
        "patch",
        "steer_2sd",
        "ablate_after",
    }  # LEACE sees means, and the answer is in the last state
    assert found.interventions[0].text.startswith("At blocks.1.resid_post + blocks.2.resid_post, every state's part")
    assert "along that of the nearest below" in by_name(found)["ablate_after"].text
    assert gate(found, "erased").passed


def test_a_second_layer_that_is_used_is_found_beside_a_first_that_is_not(
    lab: LabModel, two: ActivationStore, tmp_path: Path
) -> None:
    alone = run(of_two(tmp_path / "neither", two, UNUSED, UNUSED), lab)
    assert not gate(alone, "needed").passed
    found = run(of_two(tmp_path / "second", two, UNUSED, ANSWER), lab)
    assert by_name(found)["ablate"].passed
    assert by_name(found)["patch"].passed
    with Progress(disable=True) as bars:
        bench, _ = open_case(of_two(tmp_path / "again", two, UNUSED, ANSWER), lab, SETTINGS).bench(bars)
    first, second = bench.stands
    assert not np.allclose(first.basis(0), second.basis(0))
    assert np.array_equal(first.probe.along, axis(UNUSED))
    assert np.array_equal(second.probe.along, axis(ANSWER))


def test_isotropic_rivals_take_no_more_out_than_the_probe(
    lab: LabModel, store: ActivationStore, tmp_path: Path
) -> None:
    draft = toy_draft(tmp_path / "draft", store, axis(25) * 0.5 + axis(5))  # axis 25 holds nothing: little is taken out
    with Progress(disable=True) as bars:
        bench, _ = open_case(draft, lab, replace(SETTINGS, null=Null.ISOTROPIC)).bench(bars)
    (stand,) = bench.stands
    assert all(stand.strength(stand.basis(rival)) <= 1.0 for rival in range(10))
    assert stand.strength(stand.probe.basis) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("where", "not_run"),
    [
        (TapPoint(BLOCKS - 1), "ablate_after: nothing after the tap point (the last block)"),
        (TapPoint(2, Site.ATTN_HEADS), "ablate_after: nothing after the tap point (heads before"),
    ],
)
def test_what_cannot_be_done_at_a_tap_point_is_named(
    lab: LabModel, tmp_path: Path, where: TapPoint, not_run: str
) -> None:
    store = toy_store(tmp_path / "acts", lab, toy_texts(), where)
    direction = axis(20) if where.site is Site.RESID_POST else axis(USED)  # where block 2 puts the answer; its head 0
    found = run(toy_draft(tmp_path / "draft", store, direction, where=where), lab)
    assert found.not_run[0].startswith(not_run)
    assert by_name(found)["ablate"].passed
    assert found.evidence is Evidence.USED


def test_texts_that_are_too_long_are_left_out_and_told(lab: LabModel, store: ActivationStore, tmp_path: Path) -> None:
    draft = toy_draft(tmp_path / "draft", store, axis(USED))
    asked = open_case(draft, lab, replace(SETTINGS, max_tokens=20)).questions()
    assert asked.left_out > 0
    assert max(asked.lengths) <= 20
    with pytest.raises(LabError, match="want at least 8 of each"):
        open_case(draft, lab, replace(SETTINGS, max_tokens=12)).questions()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"randoms": 18}, "fewer than 19"),
        ({"steer": ()}, "steering"),
        ({"steer": (float("nan"),)}, "steering"),
        ({"budget_s": 0.0}, "budget"),
        ({"texts": 10}, "want at least 8 of each"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    lab: LabModel, store: ActivationStore, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(LabError, match=said):
        run(toy_draft(tmp_path / "draft", store, axis(USED)), lab, replace(SETTINGS, **changes))


def test_another_model_is_refused_naming_both_sides(store: ActivationStore, tmp_path: Path) -> None:
    other = toy_model(seed=1)
    with pytest.raises(LabError, match=r"collected on another model \(toy\): weights digest \w+ there, \w+ here"):
        run(toy_draft(tmp_path / "draft", store, axis(USED)), other)


def test_the_direction_is_as_wide_as_the_states(store: ActivationStore) -> None:
    assert store.facts.widths[TAP.name] == WIDTH


@pytest.fixture(scope="module")
def folder(lab: LabModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "toy"
    lab.model.save_pretrained(folder)
    lab.tokenizer.save_pretrained(folder)
    return folder


def test_the_command_validates_a_draft_and_prints_its_evidence(
    store: ActivationStore, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from probes.cli import main

    draft = toy_draft(tmp_path / "draft", store, axis(USED))
    arguments = [
        "validate",
        str(draft.folder),
        "--model",
        str(folder),
        "--texts",
        "40",
        "--answers",
        "positive,negative",
    ]
    assert main([*arguments, "--steer", "1,3"]) == 0
    printed = capsys.readouterr().out
    assert "evidence: used" in printed
    assert "steer_3sd" in printed
    written = json.loads((draft.folder / "validation.json").read_text())
    assert written["stage"]["evidence"] == "used"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steer", "much"], "--steer wants numbers"),
        (["--answers", "positive"], "two answers"),
        (["--randoms", "3"], "fewer than 19"),
        (["--model", "nowhere"], "no config.json"),
    ],
)
def test_the_command_refuses_what_cannot_work(
    store: ActivationStore,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    from probes.cli import main

    draft = toy_draft(tmp_path / "draft", store, axis(USED))
    assert main(["validate", str(draft.folder), "--model", str(folder), *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (draft.folder / "validation.json").exists()


def test_the_command_refuses_a_folder_that_holds_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from probes.cli import main

    assert main(["validate", str(tmp_path), "--model", str(folder)]) == 1
    assert "nothing that can be validated" in capsys.readouterr().err
