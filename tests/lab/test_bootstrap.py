"""Intervals move as far as other texts would have moved the number: on truth that was planted, and against another bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.auroc import auroc
from probes.quality.bootstrap import Ranking, Resamples
from tests.lab.scored import SCORED, arrays, plain
from tests.lab.test_calibrate import two_classes


def over_pairs(scores: np.ndarray, labels: np.ndarray, seed: int, draws: int = 2000) -> np.ndarray:
    """AUROCs of resamples, [draws], as the mean over all pairs, each weighted by how often its rows were drawn."""
    random = np.random.default_rng(seed)
    higher, lower = scores[labels][:, None], scores[~labels][None, :]
    in_order = (higher > lower) + 0.5 * (higher == lower)  # [P, N]
    positives, negatives = in_order.shape
    times = [random.multinomial(count, np.full(count, 1 / count), draws) for count in (positives, negatives)]
    return ((times[0] @ in_order) * times[1]).sum(axis=1) / in_order.size


@given(SCORED)
def test_ranked_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, labels = arrays(rows)
    found = Ranking.of(scores, labels).auroc(np.ones((1, len(labels))))[0]
    assert found == pytest.approx(auroc(scores, labels))


@given(SCORED, st.integers(0, 100))
def test_a_weight_is_a_row_so_many_times(rows: list[tuple[int, bool]], seed: int) -> None:
    scores, labels = arrays(rows)
    times = np.random.default_rng(seed).integers(1, 4, len(labels))
    found = Ranking.of(scores, labels).auroc(times[None].astype(float))[0]
    assert found == pytest.approx(auroc(np.repeat(scores, times), np.repeat(labels, times)))


def test_intervals_agree_with_the_bootstrap_over_pairs() -> None:
    scores, labels = two_classes(150, 1.0)
    rival = np.random.default_rng(1).standard_normal(150) + 0.5 * labels
    own, other = (over_pairs(one, labels, seed=3) for one in (scores, rival))
    assert plain(labels).auroc(scores) == pytest.approx(np.quantile(own, [0.025, 0.975]), abs=0.01)
    assert plain(labels).gain(scores, rival) == pytest.approx(np.quantile(own - other, [0.025, 0.975]), abs=0.015)


def test_copies_of_rows_that_are_drawn_together_make_nothing_surer() -> None:
    scores, labels = two_classes(60, 1.0)
    once = plain(labels).auroc(scores)
    thrice = Resamples(np.repeat(labels, 3), np.repeat(np.arange(60), 3), 0).auroc(np.repeat(scores, 3))
    assert thrice == pytest.approx(once)
    apart = plain(np.repeat(labels, 3)).auroc(np.repeat(scores, 3))
    assert apart[1] - apart[0] < 0.75 * (once[1] - once[0])


def test_pairs_of_both_labels_are_drawn_together_and_no_class_vanishes() -> None:
    labels = np.tile([True, False], 6)
    resamples = Resamples(labels, np.repeat(np.arange(6), 2), 0)
    drawn = next(iter(resamples))
    assert (drawn[:, labels] == drawn[:, ~labels]).all()
    assert (drawn.sum(axis=1) == 12).all()


def test_bootstrap_interval_covers_the_truth_about_as_often_as_promised() -> None:
    """N(0, 1) and N(1, 1): the true AUROC is .7602."""
    missed = 0
    for seed in range(100):
        scores, labels = two_classes(100, 1.0, seed=seed)
        low, high = plain(labels, seed).auroc(scores)
        missed += not low <= 0.7602 <= high
    assert missed <= 14  # 5 of 100 are promised; 15 or more happen twice in ten thousand


def test_a_better_score_is_found_better() -> None:
    scores, labels = two_classes(400, 1.5)
    rival = np.random.default_rng(1).standard_normal(400) + 0.5 * labels
    low, high = plain(labels).gain(scores, rival)
    assert 0 < low < auroc(scores, labels) - auroc(rival, labels) < high


def test_a_score_against_itself_gains_nothing() -> None:
    scores, labels = two_classes(400, 1.0)
    assert plain(labels).gain(scores, scores) == (0.0, 0.0)


def test_pairing_sees_a_small_gain_that_two_separate_intervals_would_hide() -> None:
    rival, labels = two_classes(400, 1.5)
    scores = rival + 0.25 * labels
    assert plain(labels).gain(scores, rival)[0] > 0
    assert plain(labels).auroc(scores)[0] < plain(labels).auroc(rival)[1]


def test_equal_scores_are_found_different_about_as_often_as_promised() -> None:
    wrong = 0
    for seed in range(200):
        one, labels = two_classes(120, 1.0, seed=seed)
        other = np.random.default_rng(1000 + seed).standard_normal(120) + labels
        low, high = plain(labels, seed).gain(one, other)
        wrong += not low <= 0 <= high
    assert wrong <= 21  # 5 % of 200 are 10; more than 21 happens once in a thousand


def test_intervals_are_the_same_for_the_same_seed() -> None:
    scores, labels = two_classes(100, 1.0)
    assert plain(labels, 5).auroc(scores) == plain(labels, 5).auroc(scores) != plain(labels, 6).auroc(scores)
