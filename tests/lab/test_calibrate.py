"""Probabilities mean what they say, and thresholds are set on the rows that may set them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from probes.activations.store import ActivationStore
from probes.cli import main
from probes.data.texts import LabelledText
from probes.draft import Draft
from probes.errors import LabError
from probes.manifest import Aggregation, Threshold
from probes.quality.benign import independent
from probes.quality.bootstrap import group_numbers
from probes.quality.calibration import calibrate, speaks_of
from probes.quality.measures import ece
from probes.quality.rows import Rows, rows_of, scores_of
from probes.quality.scaling import Method, fit_scaling, probabilities
from probes.quality.thresholds import EDGES, bucket_starts, fires, length_thresholds
from probes.stages import Part
from tests.lab.fitted import TAP, fitted_draft
from tests.lab.planted import planted_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("planted") / "acts", n=400, width=24, layers=2, strength=2.0)


@pytest.fixture
def draft(tmp_path: Path, store: ActivationStore) -> Draft:
    return fitted_draft(tmp_path / "draft", store)


def two_classes(rows: int, gap: float = 2.0, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < share
    return rng.standard_normal(rows) + gap * labels, labels


def test_temperature_keeps_the_zero_of_the_score_and_lowers_the_error(draft: Draft, store: ActivationStore) -> None:
    found = calibrate(draft, store)
    assert (found.calibration.kind, found.calibration.offset, found.calibration.knots) == ("temperature", 0.0, None)
    assert found.ece_after < found.ece_before
    assert found.rows == draft.training.parts.count(Part.CALIBRATE)


def test_platt_finds_the_offset_that_a_temperature_cannot() -> None:
    scores, labels = two_classes(20_000)
    platt, temperature = (fit_scaling(method, scores + 5, labels) for method in (Method.PLATT, Method.TEMPERATURE))
    assert platt.calibration.scale == pytest.approx(2.0, rel=0.05)  # of N(5, 1) and N(7, 1): log-odds 2 (x - 6)
    assert platt.calibration.offset == pytest.approx(-12.0, rel=0.05)
    assert ece(platt(scores + 5), labels) < 0.02 < ece(temperature(scores + 5), labels)


def test_rows_that_are_parted_without_error_give_a_finite_scale() -> None:
    scores, labels = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True])
    for method in (Method.TEMPERATURE, Method.PLATT):
        found = fit_scaling(method, scores, labels)
        assert 0 < found.calibration.scale < 10
        assert 0.5 < float(found(scores)[-1]) < 1


@pytest.mark.parametrize("method", list(Method))
def test_scores_that_do_not_rise_with_the_label_are_not_dressed_up(method: Method) -> None:
    scores, labels = two_classes(200)
    found = fit_scaling(method, scores, ~labels)
    assert (found.calibration.kind, found.calibration.knots, found.fitted) == ("none", None, False)


@given(st.floats(0.001, 0.999), st.sampled_from([Method.TEMPERATURE, Method.PLATT]))
def test_a_prior_moves_every_odds_by_the_same_factor(prior: float, method: Method) -> None:
    scores, labels = two_classes(300, share=0.3)
    before = fit_scaling(method, scores, labels)
    shift = logit(before.moved(prior)(scores)) - logit(before(scores))
    assert np.allclose(shift, logit(prior) - logit(before.base), atol=1e-6)


def test_probabilities_of_a_stated_prior_are_right_in_traffic_of_that_prior() -> None:
    fitted = fit_scaling(Method.PLATT, *two_classes(20_000)).moved(0.05)
    scores, labels = two_classes(20_000, share=0.05, seed=1)
    assert ece(fitted(scores), labels) < 0.01
    assert ece(fit_scaling(Method.PLATT, *two_classes(20_000))(scores), labels) > 0.05


def test_a_prior_moves_isotonic_knots_too_and_changes_no_order() -> None:
    scores, labels = two_classes(2000)
    before = fit_scaling(Method.ISOTONIC, scores, labels)
    after = before.moved(0.01)
    (was, low), (at, high) = (zip(*one.calibration.knots, strict=True) for one in (before, after))
    assert at == was
    assert low != high
    assert after(scores).mean() < 0.2 < before(scores).mean()


def test_prior_changes_no_decision(draft: Draft, store: ActivationStore) -> None:
    rows = rows_of(store, draft.training, Part.CALIBRATE)
    scores = scores_of(draft.served, store, (TAP,), rows)
    plain, moved = calibrate(draft, store), calibrate(draft, store, prior=0.01)
    assert (moved.prior, speaks_of(moved), speaks_of(plain)) == (0.01, 0.01, 0.5)
    decisions = [fires(one.thresholds, probabilities(one.calibration, scores), rows.tokens) for one in (plain, moved)]
    assert decisions[0].any()
    assert (decisions[0] == decisions[1]).all()


def test_isotonic_is_refused_below_a_thousand_rows(draft: Draft, store: ActivationStore) -> None:
    with pytest.raises(LabError, match="80 rows: it takes 1000"):
        calibrate(draft, store, method=Method.ISOTONIC)


@pytest.mark.parametrize(("name", "value"), [("fpr", 0.0), ("fpr", 1.0), ("fpr", float("nan")), ("prior", 1.5)])
def test_a_share_that_is_none_is_refused(draft: Draft, store: ActivationStore, name: str, value: float) -> None:
    with pytest.raises(LabError, match="must lie between 0 and 1"):
        calibrate(draft, store, **{name: value})  # type: ignore[arg-type]


def test_a_store_that_was_collected_again_is_refused(draft: Draft, tmp_path: Path) -> None:
    other = planted_store(tmp_path / "other", n=400, width=24, layers=2, seed=5)
    with pytest.raises(LabError, match="has changed since planted was trained"):
        calibrate(draft, other)


def test_too_few_benign_rows_certify_nothing_and_more_from_elsewhere_do(
    draft: Draft, store: ActivationStore, tmp_path: Path
) -> None:
    alone = calibrate(draft, store)
    assert (alone.thresholds[0].benign_rows, alone.thresholds[0].certified, alone.benign_from) == (40, False, "")
    more = planted_store(tmp_path / "more", n=100, width=24, layers=2, strength=2.0, datasets=("other",), seed=9)
    found = calibrate(draft, store, benign=more)
    assert (found.thresholds[0].benign_rows, found.thresholds[0].certified) == (90, True)
    assert found.benign_from == "other (50 texts)"
    assert found.calibration == alone.calibration


def test_benign_rows_that_the_draft_knows_are_not_counted_twice(draft: Draft, store: ActivationStore) -> None:
    with pytest.raises(LabError, match="no negative text that is unlike"):
        calibrate(draft, store, benign=store)


def test_benign_rows_of_another_tap_point_are_refused(tmp_path: Path, store: ActivationStore) -> None:
    draft = fitted_draft(tmp_path / "draft", store)
    shallow = planted_store(tmp_path / "shallow", n=100, width=24, layers=1, seed=9)
    with pytest.raises(LabError, match=r"has no rows of blocks.1.resid_post, only of blocks.0.resid_post"):
        calibrate(draft, store, benign=shallow)


def test_benign_rows_of_another_model_are_refused(tmp_path: Path, store: ActivationStore) -> None:
    draft = fitted_draft(tmp_path / "draft", store)
    deeper = planted_store(tmp_path / "deeper", n=100, width=24, layers=3, seed=9)
    with pytest.raises(LabError, match="was not collected as"):
        calibrate(draft, store, benign=deeper)


def test_of_near_duplicates_one_counts() -> None:
    """Benign rows that hang together are one observation: counted each, they would certify what nobody has seen."""
    texts = tuple(
        LabelledText(f"t{at}", label=False, key=str(at), group=group)
        for at, group in enumerate(["a", "", "a", "b", ""])
    )
    groups = group_numbers([text.group for text in texts])
    rows = Rows((0, 1, 2, 3, 4), texts, np.zeros(5, np.bool_), np.full(5, 9), groups)
    assert independent(rows).tolist() == [True, True, False, True, True]
    assert rows.only(independent(rows)).at == (0, 1, 3, 4)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=400),
    st.integers(1, 120),
)
def test_every_bucket_has_enough_rows_or_there_is_one(lengths: list[int], enough: int) -> None:
    tokens = np.array(lengths)
    starts = bucket_starts(tokens, enough)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert set(starts[1:]) <= set(EDGES)
    counts = np.bincount(np.searchsorted(starts, tokens, side="right") - 1, minlength=len(starts))
    assert len(starts) == 1 or counts.min() >= enough


def test_as_many_buckets_as_an_artifact_can_carry() -> None:
    tokens = np.repeat([8, 16, 32, 64, 128, 256, 512, 1024, 2048], 60)
    found = length_thresholds(expit(np.linspace(-1, 1, len(tokens))), tokens, 0.05, buckets=True)
    assert [one.min_tokens for one in found] == [0, *EDGES]
    first, *others = (one.model_dump() for one in found)
    first.pop("min_tokens")
    for one in others:
        one.pop("target_fpr")
    Threshold(**first, buckets=others)


@pytest.mark.parametrize(("kind", "several"), [("mean", False), ("max_rolling_mean", True)])
def test_length_buckets_are_the_default_of_scores_that_can_only_rise(
    tmp_path: Path, kind: str, *, several: bool
) -> None:
    store = planted_store(tmp_path / "acts", n=800, width=8, layers=2)
    draft = fitted_draft(tmp_path / "draft", store, aggregation=Aggregation(kind=kind))
    assert (len(calibrate(draft, store, fpr=0.2).thresholds) > 1) is several
    assert len(calibrate(draft, store, fpr=0.2, length_buckets=not several).thresholds) == 1 + (not several)


def test_the_command_writes_the_stage_and_says_what_comes_next(
    draft: Draft, store: ActivationStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["calibrate", str(draft.folder), "--fpr", "0.1", "--method", "platt"]) == 0
    assert draft.calibrated == calibrate(draft, store, fpr=0.1, method=Method.PLATT)
    shown = capsys.readouterr().out
    assert "Probabilities (platt, 80 rows) were off by" in shown
    assert f"Next: probes evaluate {draft.folder}" in shown


def test_a_rate_that_the_rows_cannot_certify_is_told_with_one_that_they_can(
    draft: Draft, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(draft.folder), "--fpr", "0.05"]) == 0
    shown = capsys.readouterr().out
    able = re.search(r"40 benign rows cannot certify 5\.0%, which takes 59: .*--benign.*--fpr (\S+)\. ", shown)
    assert able is not None, shown
    assert main(["calibrate", str(draft.folder), "--fpr", able[1]]) == 0
    assert "cannot certify" not in capsys.readouterr().out
    assert draft.calibrated.thresholds[0].certified


def test_the_command_refuses_what_cannot_be_done_and_writes_nothing(
    draft: Draft, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(draft.folder), "--method", "isotonic"]) == 1
    assert capsys.readouterr().err.startswith("probes: an isotonic calibration follows every bump")
    assert not (draft.folder / "calibration.json").exists()


def test_the_command_takes_benign_rows_by_their_folder_and_says_how_to_get_one(
    draft: Draft, store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = planted_store(tmp_path / "more", n=100, width=24, layers=2, strength=2.0, datasets=("other",), seed=9)
    assert main(["calibrate", str(draft.folder), "--benign", str(more.folder)]) == 0
    assert draft.calibrated == calibrate(draft, store, benign=more)
    texts = tmp_path / "benign.csv"
    texts.write_text("text\nhello\n")
    assert main(["calibrate", str(draft.folder), "--benign", str(texts)]) == 1
    assert f"probes collect --negative-only --data {texts}" in capsys.readouterr().err
