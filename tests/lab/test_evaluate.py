"""An evaluation is whole, the same each time, and refuses what it cannot judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probes.activations.store import ActivationStore
from probes.auroc import auroc
from probes.cli import main
from probes.draft import Draft
from probes.errors import LabError
from probes.quality.calibration import calibrate
from probes.quality.controls import first_point, left_out, random_control, shuffled_control
from probes.quality.evaluation import STEPS, evaluate
from probes.quality.refit import Refit
from probes.quality.rows import Rows, rows_of, scores_of
from probes.serving import Served
from probes.stages import Evaluated, Part
from sidecar.types import BoolArray, TapPoint
from tests.lab.fitted import TAP, calibrated_draft, fitted_draft
from tests.lab.planted import planted_store

SETS = ("alpha", "beta")
WIDTH = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("planted") / "acts"
    return planted_store(folder, n=300, width=WIDTH, layers=2, strength=2.0, datasets=SETS, outside=("gamma",))


@pytest.fixture(scope="module")
def draft(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return calibrated_draft(tmp_path_factory.mktemp("draft"), store)


@pytest.fixture(scope="module")
def found(draft: Draft, store: ActivationStore) -> Evaluated:
    return evaluate(draft, store, requests_per_day=1000, prior=0.1)


def test_every_number_is_of_the_test_rows_alone(draft: Draft, store: ActivationStore, found: Evaluated) -> None:
    rows = rows_of(store, draft.training, Part.TEST)
    assert (found.rows, found.positives) == (len(rows), int(rows.labels.sum()))
    assert found.rows == draft.training.parts.count(Part.TEST)
    assert sum(count for *_, count in found.reliability) == found.rows
    assert 0 < sum(count for _, count, _ in found.length_strata) <= found.rows
    assert found.curve[0] == (0.0, 0.0)
    assert found.curve[-1] == (1.0, 1.0)


def test_an_evaluation_done_again_is_the_same(draft: Draft, store: ActivationStore, found: Evaluated) -> None:
    steps: list[str] = []
    again = evaluate(draft, store, requests_per_day=1000, prior=0.1, step=steps.append)
    assert again.model_copy(update={"seconds": found.seconds}) == found
    assert tuple(steps) == STEPS


def test_alerts_are_reckoned_from_both_rates(found: Evaluated) -> None:
    assert found.alerts_per_day == pytest.approx(1000 * (0.1 * found.fires.tpr + 0.9 * found.fires.fpr))
    assert (found.requests_per_day, found.prior) == (1000, 0.1)


def test_rates_that_the_rows_cannot_carry_are_marked(found: Evaluated) -> None:
    """There are 20 negatives: not even 5 % can be spoken of, for which it takes 59."""
    assert [point.fpr for point in found.operating_points] == [0.001, 0.01, 0.05]
    assert not any(point.held for point in found.operating_points)
    assert not found.fires.held


def test_each_data_set_is_left_out_in_turn_and_outside_sets_stay_outside(
    found: Evaluated, store: ActivationStore
) -> None:
    assert [name for name, _, _ in found.left_out] == list(SETS)
    assert sum(rows for _, rows, _ in found.left_out) == found.rows
    assert all(value > 0.7 for _, _, value in found.left_out)
    assert [(name, rows) for name, rows, _ in found.outside] == [("gamma", 100)]
    assert found.outside[0][2] > 0.8


class TurnedRound:
    """A store whose second data set means the opposite by its states."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store

    def at(self, where: TapPoint, rows: tuple[int, ...]) -> TurnedStates:
        turned = [-1 if self._store.texts[row].dataset == SETS[1] else 1 for row in rows]
        return TurnedStates(sign * self._store.read(row, where) for sign, row in zip(turned, rows, strict=True))


class TurnedStates(list[np.ndarray]):
    width = WIDTH

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(rows) for rows in self])


def test_a_data_set_on_which_the_others_say_nothing_true_is_found_by_leaving_it_out(
    draft: Draft, store: ActivationStore
) -> None:
    train, test = (rows_of(store, draft.training, part) for part in (Part.TRAIN, Part.TEST))
    turned = Refit(draft.training, TurnedRound(store))  # type: ignore[arg-type]
    assert all(value < 0.3 for _, _, value in left_out(turned, train, test))
    assert all(value > 0.7 for _, _, value in left_out(Refit(draft.training, store), train, test))


class Peeking:
    """Trains on nothing, and knows the truth of the test rows a little."""

    def fitter(self, _: Rows, test: Rows) -> Callable[[BoolArray], np.ndarray]:
        noise = np.random.default_rng(0).standard_normal(len(test))
        return lambda _: noise + 2.0 * test.labels


def test_a_kind_that_peeks_at_the_truth_is_caught_by_shuffled_labels(draft: Draft, store: ActivationStore) -> None:
    """Each shuffle is used both ways round: luck cancels out, a leak does not."""
    train, test = (rows_of(store, draft.training, part) for part in (Part.TRAIN, Part.TEST))
    peeking = shuffled_control(Peeking(), train, test, seed=0)  # type: ignore[arg-type]
    honest = shuffled_control(Refit(draft.training, store), train, test, seed=0)
    assert honest == pytest.approx(0.5, abs=0.01)
    assert peeking > 0.8


def test_random_directions_are_chosen_on_training_rows(draft: Draft, store: ActivationStore) -> None:
    """Chosen on the test rows they would reach more: luck is the highest of a thousand draws, and does not last."""
    blind = fitted_draft(draft.folder.parent / "blind", store, where=TapPoint(0))
    train, test = (rows_of(store, blind.training, part) for part in (Part.TRAIN, Part.TEST))
    refit = Refit(blind.training, store)
    honest = auroc(random_control(refit, train, test, seed=0), test.labels)
    peeking = auroc(random_control(refit, test, test, seed=0), test.labels)
    assert honest < 0.65 < peeking


def test_the_first_layer_is_of_the_same_site_if_there_is_one(store: ActivationStore) -> None:
    assert first_point(store, TAP) == TapPoint(0)
    assert first_point(store, TapPoint(0)) is None


def test_the_lowest_tap_point_has_no_gate_of_its_own(tmp_path: Path, store: ActivationStore) -> None:
    found = evaluate(calibrated_draft(tmp_path / "draft", store, where=TapPoint(0)), store)
    assert found.first_layer_auroc is None
    assert "first_layer" not in {gate.name for gate in found.gates}


def test_a_draft_that_is_not_calibrated_is_refused(tmp_path: Path, store: ActivationStore) -> None:
    with pytest.raises(LabError, match=r"calibration.json is not there: `probes calibrate` comes first"):
        evaluate(fitted_draft(tmp_path / "draft", store), store)


@pytest.mark.parametrize(("prior", "requests"), [(0.0, 10.0), (1.0, 10.0), (0.5, 0.0), (0.5, float("nan"))])
def test_impossible_traffic_is_refused(draft: Draft, store: ActivationStore, prior: float, requests: float) -> None:
    with pytest.raises(LabError, match="want a prior between 0 and 1"):
        evaluate(draft, store, prior=prior, requests_per_day=requests)


def test_too_few_texts_to_test_on_are_refused_with_their_number(tmp_path: Path) -> None:
    few = planted_store(tmp_path / "acts", n=40, width=8, layers=2)
    with pytest.raises(LabError, match="4 positive and 4 negative texts to calibrate on; want at least 5 of each"):
        calibrate(fitted_draft(tmp_path / "draft", few), few)


def test_a_score_that_is_no_number_is_refused_by_its_text(draft: Draft, store: ActivationStore) -> None:
    served, rows = draft.served, rows_of(store, draft.training, Part.TEST)
    broken = Served(served.directions * np.float32(np.nan), served.offsets, served.aggregation)
    with pytest.raises(LabError, match=f"text {rows.at[0]} has no finite score at {TAP.name}"):
        scores_of(broken, store, (TAP,), rows)


def test_the_command_writes_the_stage_and_shows_gates_with_their_reasons(
    tmp_path: Path, store: ActivationStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    draft = calibrated_draft(tmp_path / "draft", store)
    assert main(["evaluate", str(draft.folder), "--requests-per-day", "5000", "--prior", "0.02"]) == 0
    written = draft.stage(Evaluated)
    assert written is not None
    assert (written.requests_per_day, written.prior) == (5000, 0.02)
    shown = capsys.readouterr().out
    assert all(gate.text[:40] in shown for gate in written.gates)
    assert "FAILED" in shown  # 20 benign rows certify nothing
    assert "alerts a day are to be expected of 5,000 requests" in shown
