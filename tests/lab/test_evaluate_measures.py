"""Measures are what their definitions say, and intervals cover what they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from probes.auroc import auroc
from probes.data.texts import LabelledText, text_key
from probes.quality import gates
from probes.quality.leaks import ablated, telling_words, without
from probes.quality.lengths import matched_auroc, strata
from probes.quality.measures import brier, curve, ece, operating_point, partial_auroc, prior_weights, reliability, roc
from probes.quality.rows import Rows
from probes.stages import Calibrated, LengthThreshold, Rival
from tests.lab.scored import SCORED, arrays, plain


def rows_with(labels: np.ndarray, tokens: np.ndarray, texts: list[str] | None = None) -> Rows:
    words = texts if texts is not None else [f"t{at}" for at in range(len(labels))]
    made = tuple(LabelledText(text, bool(label), text_key(text)) for text, label in zip(words, labels, strict=True))
    return Rows(tuple(range(len(labels))), made, labels, tokens, np.arange(len(labels)))


@given(SCORED, st.sampled_from([0.1, 0.3, 1.0]))
def test_partial_auroc_from_zero_is_that_of_scikit_learn(rows: list[tuple[int, bool]], until: float) -> None:
    scores, labels = arrays(rows)
    wanted = roc_auc_score(labels, scores, max_fpr=until)
    assert partial_auroc(scores, labels, (0.0, until)) == pytest.approx(wanted)


@given(SCORED, st.floats(0, 0.4), st.floats(0.5, 1))
def test_partial_areas_add_up(rows: list[tuple[int, bool]], low: float, high: float) -> None:
    """Un-scaled again: the area to the upper rate is that to the lower one and that between."""
    scores, labels = arrays(rows)

    def area(a: float, b: float) -> float:
        chance = (b**2 - a**2) / 2
        return (2 * partial_auroc(scores, labels, (a, b)) - 1) * (b - a - chance) + chance

    whole = area(0.0, high)
    parts = area(low, high) + (area(0.0, low) if low > 1e-6 else 0.0)
    assert parts == pytest.approx(whole, abs=1e-5)


def test_a_score_that_says_nothing_has_half_the_partial_auroc() -> None:
    assert partial_auroc(np.zeros(50), np.arange(50) < 20) == pytest.approx(0.5)


@given(SCORED)
def test_curve_rises_from_corner_to_corner(rows: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(rows)
    fpr, tpr = roc(scores, labels)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(scores, labels))
    assert len(curve(scores, labels, points=5)) <= 5


@given(SCORED, st.sampled_from([0.001, 0.05, 0.3]))
def test_an_operating_point_fires_on_no_more_negatives_than_it_says(rows: list[tuple[int, bool]], fpr: float) -> None:
    scores, labels = arrays(rows)
    point = operating_point(scores, scores, labels, fpr)
    fired = scores > point.threshold
    assert fired[~labels].mean() <= fpr
    assert point.tpr == fired[labels].mean()
    assert point.tpr_interval[0] <= point.tpr <= point.tpr_interval[1]


@pytest.mark.parametrize(
    ("rows", "fpr", "held"), [(58, 0.05, False), (59, 0.05, True), (298, 0.01, False), (299, 0.01, True)]
)
def test_a_rate_is_spoken_of_from_as_many_rows_as_could_certify_it(rows: int, fpr: float, *, held: bool) -> None:
    labels = np.concatenate([np.zeros(rows, np.bool_), np.ones(5, np.bool_)])
    assert operating_point(np.arange(rows + 5.0), np.arange(rows + 5.0), labels, fpr).held is held


def test_calibration_error_is_small_for_true_probabilities_and_large_for_sure_ones() -> None:
    told = np.random.default_rng(0).random(5000)
    labels = np.random.default_rng(1).random(5000) < told
    assert ece(told, labels) < 0.03
    assert ece((told > 0.5).astype(float), labels) == pytest.approx(0.25, abs=0.03)
    assert brier(told, labels) == pytest.approx(1 / 6, abs=0.02)  # the mean of p (1 - p)


def test_equal_probabilities_are_never_parted_by_the_order_of_rows() -> None:
    """Rows often come with one label first: bins that cut through ties would take that for miscalibration."""
    labels = np.arange(200) < 100
    assert ece(np.full(200, 0.5), labels) == 0.0
    assert reliability(np.full(200, 0.5), labels, np.ones(200)) == ((0.5, 0.5, 200),)


def test_weights_speak_of_another_share_of_positives() -> None:
    labels = np.arange(100) < 50
    weights = prior_weights(labels, 0.1)
    assert np.average(labels, weights=weights) == pytest.approx(0.1)
    assert weights.mean() == pytest.approx(1.0)
    assert ece(np.full(100, 0.1), labels, weights) == pytest.approx(0.0, abs=1e-9)
    assert ece(np.full(100, 0.1), labels) == pytest.approx(0.4)


def test_matching_lengths_takes_the_length_out_and_leaves_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.5
    tokens = rng.integers(10, 60, 2000) + 20 * labels
    rows = rows_with(labels, tokens)
    length, truth = tokens.astype(float), rng.standard_normal(2000) + 1.5 * labels
    by_length, by_truth = (matched_auroc(scores, rows, plain(labels)) for scores in (length, truth))
    assert by_length is not None
    assert by_truth is not None
    assert auroc(length, labels) > 0.75
    assert by_length.auroc < 0.55
    assert by_truth.auroc == pytest.approx(auroc(truth, labels), abs=0.03)
    assert by_truth.interval[0] < by_truth.auroc < by_truth.interval[1]


def test_nothing_is_matched_where_lengths_part_the_labels() -> None:
    labels = np.arange(100) < 50
    assert matched_auroc(np.arange(100.0), rows_with(labels, np.where(labels, 40, 10)), plain(labels)) is None


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=120))
def test_strata_hold_every_row_once_or_say_nothing_of_it(made: list[tuple[int, bool]]) -> None:
    tokens, labels = np.array([count for count, _ in made]), np.array([label for _, label in made])
    found = strata(tokens.astype(float), rows_with(labels, tokens))
    spans = [tuple(map(int, name.split("-"))) for name, _, _ in found]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    for (low, high), (_, rows, _) in zip(spans, found, strict=True):
        assert rows == ((tokens >= low) & (tokens <= high)).sum()


def worded(count: int, telling: float, seed: int = 0) -> Rows:
    """Words at random; "zebra" in this share of the positives, and "the" a little more often in them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 0
    texts = []
    for at in range(count):
        words = [f"w{one}" for one in rng.integers(0, 50, 8)]
        words += ["Zebra!"] if labels[at] and rng.random() < telling else []
        words += ["the"] if rng.random() < (0.7 if labels[at] else 0.6) else []
        texts.append(" ".join(words))
    return rows_with(labels, np.full(count, 8), texts)


def test_a_telling_word_is_found_and_one_that_is_only_significant_is_not() -> None:
    assert telling_words(worded(5000, 0.3)) == ("zebra",)


def test_where_no_word_tells_none_is_named_in_95_percent_of_sets() -> None:
    named = sum(bool(telling_words(worded(400, 0.0, seed=seed))) for seed in range(30))
    assert named <= 2  # 1 % each are allowed


def test_texts_without_the_words_are_what_is_left() -> None:
    rows = worded(400, 0.6)
    kept = without(rows, ("zebra",))
    assert [("zebra" not in text.text.casefold()) for text in rows.texts] == kept.tolist()
    scores = np.where(kept, 0.0, 1.0)
    found = ablated(scores, {"words": scores}, rows, ("zebra",), 0)
    assert found is not None
    assert (found.auroc, found.rival, found.rows) == (0.5, 0.5, int(kept.sum()))
    assert ablated(scores, {"words": scores}, worded(400, 1.0), ("zebra",), 0) is None


def rival(gain: tuple[float, float], name: str = "length") -> Rival:
    return Rival(name=name, auroc=0.6, gain=sum(gain) / 2, gain_interval=gain)


def test_the_gate_on_text_is_as_hard_as_the_hardest_rival() -> None:
    rivals = [rival((0.2, 0.3)), rival((-0.01, 0.2), "tfidf_char")]
    gate = gates.beats_text(0.7, rivals)
    assert not gate.passed
    assert "tfidf_char" in gate.text
    assert gates.beats_text(0.7, rivals[:1]).passed


def test_states_that_show_as_much_before_fail_the_first_layer() -> None:
    assert not gates.first_layer(0.8, 0.8, (-0.01, 0.01), "blocks.0.resid_post").passed
    assert gates.first_layer(0.8, 0.7, (0.05, 0.15), "blocks.0.resid_post").passed


def limit(min_tokens: int, rows: int, *, certified: bool) -> LengthThreshold:
    return LengthThreshold(
        min_tokens=min_tokens,
        probability=0.9,
        target_fpr=0.05,
        measured_fpr=0.0,
        fpr_interval=(0.0, 0.05),
        benign_rows=rows,
        certified=certified,
    )


@pytest.mark.parametrize(
    ("certified", "fired", "words"),
    [
        (True, 3, "At most 5.0% of negatives fire"),
        (False, 3, "It promises nothing: 40 negatives of at least 64 tokens, and a rate of 5.0% takes 59"),
        (True, 15, "Test texts belie it"),
    ],
)
def test_the_gate_of_the_threshold_wants_a_certificate_that_test_rows_do_not_belie(
    fired: int, words: str, *, certified: bool
) -> None:
    found = Calibrated(
        calibration={"kind": "temperature"},
        ece_before=0,
        ece_after=0,
        thresholds=(limit(0, 80, certified=True), limit(64, 40, certified=certified)),
        rows=100,
    )
    gate = gates.threshold(found, fired, 100)
    assert gate.passed is (certified and fired == 3)
    assert words in gate.text
