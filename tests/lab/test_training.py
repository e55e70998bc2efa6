"""`probes train`: what is chosen, on which rows, and what it writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from probes.activations.store import ActivationStore
from probes.auroc import auroc
from probes.cli import main
from probes.commands.train import aggregation
from probes.data.texts import LabelledText, text_key
from probes.draft import FITS, Draft
from probes.errors import LabError
from probes.kinds.registry import KINDS
from probes.manifest import Aggregation, AggregationKind
from probes.stages import Candidate, Part, Training
from probes.training.candidates import ways
from probes.training.choice import FINALISTS, finalists, shortlist
from probes.training.folds import FOLDS, folds, units
from probes.training.search import Search
from probes.training.table import candidates_table
from probes.training.train import refit, train
from sidecar.types import FloatArray, TapPoint
from tests.lab.planted import planted_direction, planted_store

QUICK = Search(name="planted", kinds=("logistic", "mass_mean"), strengths=(0.01,))
MEAN = Aggregation(kind=AggregationKind.MEAN)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("acts"), n=240, seed=3)


@pytest.fixture(scope="module")
def training(store: ActivationStore) -> Training:
    return train(store, QUICK)[0]


class Poisoned:
    """A store whose rows are NaN outside of TRAIN and SELECT."""

    def __init__(self, store: ActivationStore, parts: Sequence[Part]) -> None:
        self._store = store
        self.folder, self.digest, self.facts, self.texts = store.folder, store.digest, store.facts, store.texts
        self._allowed = {row for row, part in enumerate(parts) if part in {Part.TRAIN, Part.SELECT}}
        self.read: set[int] = set()

    def at(self, where: TapPoint, rows: Sequence[int] | None = None) -> list[FloatArray]:
        chosen = range(len(self.texts)) if rows is None else rows
        self.read.update(chosen)
        states = self._store.at(where)
        return [states[row] if row in self._allowed else states[row] * np.nan for row in chosen]


def test_the_planted_direction_is_found_and_the_record_is_complete(store: ActivationStore) -> None:
    made, served = train(store, QUICK)
    direction = served.directions[:, 0]
    assert direction @ planted_direction(16, 3) / np.linalg.norm(direction) > 0.9
    assert made.select_auroc > 0.9
    assert TapPoint.parse(made.tap_point) == TapPoint(1)  # block 0 knows nothing, 1 and 2 the same
    assert len(made.parts) == len(store.texts) == 240
    assert len(made.candidates) == 3 * 2 * 4 == QUICK.count(store.facts)
    assert (made.store, made.store_digest) == (str(store.folder.resolve()), store.digest)
    assert 0 < made.seconds < 60
    assert (made.name, made.positive_label, made.seed) == ("planted", "positive", 0)
    assert served.aggregation == made.aggregation
    chance = [one.auroc for one in made.candidates if one.tap_point == "blocks.0.resid_post"]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.12)


def test_no_row_is_read_but_those_that_train_and_select(store: ActivationStore, training: Training) -> None:
    poisoned = Poisoned(store, training.parts)
    made, served = train(poisoned, QUICK)  # type: ignore[arg-type]  # all of a store that training needs
    assert poisoned.read == poisoned._allowed
    assert made.candidates == training.candidates
    assert np.isfinite(served.directions).all()


def test_candidates_are_cross_validated_on_training_rows_alone(store: ActivationStore, training: Training) -> None:
    """Other states in SELECT move which finalist wins, never what cross-validation found."""
    select = {row for row, part in enumerate(training.parts) if part is Part.SELECT}

    class Other(Poisoned):
        def at(self, where: TapPoint, rows: Sequence[int] | None = None) -> list[FloatArray]:
            states = self._store.at(where)
            return [-states[row] if row in select else states[row] for row in rows or ()]

    made, _ = train(Other(store, training.parts), QUICK)  # type: ignore[arg-type]
    assert made.candidates == training.candidates
    assert made.select_auroc < 0.5 < training.select_auroc


def test_the_same_seed_gives_the_same_weights_and_another_other_parts(store: ActivationStore) -> None:
    search = replace(QUICK, kinds=("mass_mean", "multimax"), tap_points=(TapPoint(1),))
    (one, first), (two, second), (other, _) = (train(store, replace(search, seed=seed)) for seed in (1, 1, 2))
    assert first.directions.tobytes() == second.directions.tobytes()
    assert one.model_dump(exclude={"seconds"}) == two.model_dump(exclude={"seconds"})
    assert other.parts != one.parts


def test_refit_gives_the_trained_probe_again(store: ActivationStore) -> None:
    made, served = train(store, replace(QUICK, kinds=("mass_mean",)))
    assert np.array_equal(refit(made, store).served_.directions, served.directions)
    rows = [row for row, part in enumerate(made.parts) if part is Part.TEST]
    first = refit(made, store, everywhere=(TapPoint(0),))
    found = auroc(
        first.decision_function(store.at(TapPoint(0), rows)), np.array([store.texts[row].label for row in rows])
    )
    assert found < 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_trained_and_kept_as_a_draft(kind: str, store: ActivationStore, tmp_path: Path) -> None:
    search = Search(name="one", kinds=(kind,), tap_points=(TapPoint(2),), strengths=(0.1,))
    made, served = train(store, search)
    draft = Draft(tmp_path / "draft")
    draft.write_trained(made, served)
    assert draft.training == made
    rows = [row for row, part in enumerate(made.parts) if part is Part.TEST]
    scores = draft.served.scores(store.at(TapPoint(2), rows))
    assert auroc(scores, np.array([store.texts[row].label for row in rows])) > 0.9


def test_what_only_the_last_row_shows_is_trained_with_last(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "acts", n=240, strength=6.0, rows="last", seed=5, layers=2)
    assert train(store, replace(QUICK, kinds=("logistic",)))[0].aggregation.kind is AggregationKind.LAST


def test_slow_kinds_are_tried_where_quick_ones_did_best_or_everywhere(store: ActivationStore) -> None:
    search = Search(name="two", kinds=("mass_mean", "multimax"), strengths=(0.1,), aggregations=None)
    for everywhere, layers in ((False, {1, 2}), (True, {0, 1, 2})):
        asked = replace(search, everywhere=everywhere)
        made, _ = train(store, asked)
        slow = {TapPoint.parse(one.tap_point).layer for one in made.candidates if one.kind == "multimax"}
        assert slow == layers
        assert len(made.candidates) == asked.count(store.facts)


def test_slow_kinds_alone_are_tried_everywhere() -> None:
    slow = Search(name="slow", kinds=("token", "attention"))
    assert slow.stages == (slow.ways, ())


def test_the_shortlist_is_the_earliest_within_the_rule_and_the_best() -> None:
    tried = [_candidate(9, 0.90), _candidate(8, 0.895), _candidate(4, 0.881), _candidate(2, 0.879)]
    assert shortlist(tried) == (TapPoint(4), TapPoint(9))
    assert shortlist(tried[:2]) == (TapPoint(8), TapPoint(9))
    assert shortlist(tried[:1]) == (TapPoint(9),)


def _candidate(
    layer: int, auroc: float, kind: str = "logistic", error: float = 0.02, strength: float = 1.0
) -> Candidate:
    return Candidate(
        tap_point=TapPoint(layer).name, kind=kind, aggregation=MEAN, strength=strength, auroc=auroc, error=error
    )


def test_the_earliest_layer_within_one_standard_error_of_the_best_is_taken() -> None:
    tried = [_candidate(9, 0.90), _candidate(4, 0.881), _candidate(2, 0.879), _candidate(4, 0.80, "mass_mean")]
    assert finalists(tried) == (_candidate(4, 0.881),)


def test_finalists_are_the_best_of_each_kind_the_best_first_and_not_too_many() -> None:
    tried = [
        _candidate(3, 0.95),
        _candidate(3, 0.94, strength=2.0),
        *(_candidate(3, 0.945 - place / 1000, f"kind {place}") for place in range(6)),
    ]
    chosen = finalists(tried)
    assert [one.kind for one in chosen] == ["logistic", "kind 0", "kind 1", "kind 2"]
    assert len(chosen) == FINALISTS
    assert chosen[0].strength == 1.0


def _text(words: str, label: bool, group: str = "", pair: str = "") -> LabelledText:
    return LabelledText(words, label, text_key(words), group=group, pair=pair)


def test_texts_tied_by_group_pair_or_words_are_one_unit_also_through_others() -> None:
    texts = [
        _text("a", True, group="g"),
        _text("b", False, group="g", pair="p"),
        _text("c", True, pair="p"),
        _text("C!", True),
        _text("d", False),
        _text("e", True, group="p"),
    ]
    found = units(texts)
    assert len({*found[:4]}) == 1
    assert len({*found[3:]}) == 3


def test_no_unit_is_on_both_sides_of_a_fold_and_both_classes_are() -> None:
    random = np.random.default_rng(0)
    labels = random.random(200) < 0.3
    groups = [str(number) for number in random.integers(80, size=200)]
    found = folds(labels, groups, seed=1)
    assert len(found) == FOLDS
    assert sorted(np.concatenate([held_out for _, held_out in found]).tolist()) == list(range(200))
    for learn, held_out in found:
        assert not {groups[row] for row in learn} & {groups[row] for row in held_out}
        assert {*labels[learn].tolist()} == {*labels[held_out].tolist()} == {True, False}


def test_too_few_independent_texts_are_refused() -> None:
    labels = np.array([True] * 6 + [False] * 6)
    with pytest.raises(LabError, match="two independent texts of each class"):
        folds(labels, ["one"] * 6 + [str(number) for number in range(6)], seed=0)


def test_strengths_and_aggregations_that_are_named_replace_each_kinds_own() -> None:
    last = Aggregation(kind=AggregationKind.LAST)
    found = ways(("logistic", "mass_mean"), (last, Aggregation(kind=AggregationKind.ATTENTION)), (1.0, 2.0))
    assert [(way.kind, way.aggregation, way.strength) for way in found] == [
        (kind, last, strength) for kind in ("logistic", "mass_mean") for strength in (1.0, 2.0)
    ]


def test_a_kind_that_no_named_aggregation_fits_is_refused() -> None:
    with pytest.raises(LabError, match=r"attention can be scored by none .* but by: attention"):
        ways(("attention",), (MEAN,), None)
    with pytest.raises(LabError, match="no kind 'svm'"):
        ways(("svm",), None, None)


def test_the_command_writes_a_draft_and_says_what_was_chosen(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "english-mood"
    options = ["--kinds", "logistic", "--layers", "1,2", "--aggregations", "mean,max_rolling_mean:5", "--seed", "4"]
    assert main(["train", str(store.folder), "--into", str(into), "--description", "Mood", *options]) == 0
    made = Draft(into).training
    assert (made.name, made.description, made.seed) == ("english_mood", "Mood", 4)
    assert {one.tap_point for one in made.candidates} == {"blocks.1.resid_post", "blocks.2.resid_post"}
    assert {(one.aggregation.kind.value, one.aggregation.window) for one in made.candidates} == {
        ("mean", 10),
        ("max_rolling_mean", 5),
    }
    told = capsys.readouterr().out
    assert f"english_mood: logistic at {made.tap_point}" in told
    assert "Next: probes calibrate" in told
    assert "4 best of 4 ways" in told
    assert max(map(len, told.splitlines()[:-1])) <= 80  # the last line wraps where the terminal does


def test_a_table_in_eighty_columns_has_the_longest_way_with_its_strength() -> None:
    rolling = Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN)
    one = Candidate(
        tap_point="blocks.14.resid_post",
        kind="softmax_token",
        aggregation=rolling,
        strength=0.001,
        auroc=0.9,
        error=0.01,
    )
    fields = {name: getattr(one, name) for name in ("tap_point", "kind", "aggregation", "strength")}
    made = Training(
        name="x",
        store="",
        store_digest="",
        seed=0,
        parts=(),
        select_auroc=0.9,
        candidates=(one,),
        seconds=1.0,
        **fields,
    )
    shown = StringIO()
    Console(width=80, file=shown).print(candidates_table(made))
    for cell in ("> 0.900", "0.010", "blocks.14.resid_post", "softmax_token,", "max_rolling_mean, 10", "0.001"):
        assert cell in shown.getvalue()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "7"], "--layers 7"),
        (["--kinds", "svm"], "no kind 'svm'"),
        (["--aggregations", "median"], "aggregation 'median'"),
        (["--aggregations", "mean:0"], "aggregation 'mean:0'"),
        (["--aggregations", "multimax:2:3"], "want multimax:heads"),
        (["--strengths", "much"], "'much' is not a number"),
        (["--strengths", "0"], "strength must be a number above 0"),
        (["--name", "Bad name"], "no name for a probe"),
    ],
)
def test_a_call_that_cannot_be_done_is_told_before_anything_is_written(
    options: list[str], words: str, store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "draft"
    assert main(["train", str(store.folder), "--into", str(into), *options]) == 1
    assert words in capsys.readouterr().err
    assert not into.exists()


def test_an_aggregation_is_named_with_its_numbers() -> None:
    found = [aggregation(text) for text in ("coherence:12:4", "multimax:3", "max_ema")]
    assert [(one.kind.value, one.window, one.agree, one.heads) for one in found] == [
        ("coherence", 12, 4, 1),
        ("multimax", 10, 1, 3),
        ("max_ema", 10, 1, 1),
    ]


def test_a_store_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "nowhere"), "--into", str(tmp_path / "draft")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_tap_point_that_was_not_collected_is_refused(store: ActivationStore) -> None:
    with pytest.raises(LabError, match=r"have no states of blocks\.9\.resid_post; they have: blocks\.0"):
        train(store, replace(QUICK, tap_points=(TapPoint(9),)))


def test_an_interrupt_leaves_no_draft_and_what_was_fitted(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("probes.training.train._last_word", interrupted)
    assert main(["train", str(store.folder), "--into", str(tmp_path / "draft"), "--kinds", "mass_mean"]) == 130
    assert [one.name for one in (tmp_path / "draft").iterdir()] == [FITS]


def test_a_kind_that_is_no_sum_is_refused_before_anything_is_read(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(store.folder), "--into", str(tmp_path / "draft"), "--ray"]
    assert main([*arguments, "--kinds", "mass_mean,logistic"]) == 1
    assert "logistic cannot be fitted by sums, and so not by Ray: that takes mass_mean" in capsys.readouterr().err
    assert not (tmp_path / "draft").exists()


def test_without_ray_the_command_that_installs_it_is_named(
    store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import finds where it is not installed
    assert main(["train", str(store.folder), "--into", str(tmp_path / "draft"), "--ray"]) == 1
    assert "Ray is not installed: pip install 'stethoscope[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "draft").exists()
