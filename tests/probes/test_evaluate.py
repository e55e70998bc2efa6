"""Comparisons find the truth that was planted, and nothing where nothing was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.evaluate import auroc, compare, shuffled_auroc
from sidecar.types import BoolArray

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def planted(gap: float, rows: int = 400, seed: int = 0) -> tuple[np.ndarray, BoolArray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < 0.5
    return rng.standard_normal(rows) + gap * labels, labels


@given(ROWS)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([float(score) for score, _ in rows]), np.array([label for _, label in rows])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auroc_without_both_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.zeros(3), np.ones(3, dtype=np.bool_))


def test_a_better_probe_is_found_better() -> None:
    probe, labels = planted(1.5)
    rival = np.random.default_rng(1).standard_normal(len(labels)) + 0.5 * labels
    found = compare(probe, rival, labels, seed=0)
    assert found.gain_interval[0] > 0
    assert found.gain_interval[0] < found.gain < found.gain_interval[1]
    assert found.interval[0] < found.auroc < found.interval[1]


def test_a_probe_against_itself_gains_nothing() -> None:
    probe, labels = planted(1.0)
    assert compare(probe, probe, labels, seed=0).gain_interval == (0.0, 0.0)


def test_pairing_sees_a_small_gain_that_two_separate_intervals_would_hide() -> None:
    rival, labels = planted(1.5)
    found = compare(rival + 0.25 * labels, rival, labels, seed=0)
    assert found.gain_interval[0] > 0
    alone = compare(rival, rival, labels, seed=0)
    assert found.interval[0] < alone.interval[1]


def test_equal_probes_are_found_different_about_as_often_as_promised() -> None:
    wrong = 0
    for seed in range(200):
        one, labels = planted(1.0, rows=120, seed=seed)
        other = np.random.default_rng(1000 + seed).standard_normal(len(labels)) + labels
        low, high = compare(one, other, labels, seed=seed).gain_interval
        wrong += not low <= 0 <= high
    assert wrong <= 21  # 5 % of 200 are 10; more than 21 happens once in a thousand


def test_comparison_is_the_same_for_the_same_seed() -> None:
    probe, labels = planted(1.0)
    rival = planted(0.5, seed=3)[0]
    assert compare(probe, rival, labels, seed=5) == compare(probe, rival, labels, seed=5)


@pytest.mark.parametrize(("leak", "low", "high"), [(0.0, 0.45, 0.55), (3.0, 0.9, 1.0)])
def test_shuffled_labels_score_half_unless_something_leaks(leak: float, low: float, high: float) -> None:
    """The leak: a scorer that looks at the held-out labels. It is what the control is there to catch."""
    rng = np.random.default_rng(0)
    train, held_out = (rng.random(300) < 0.5 for _ in range(2))
    features = rng.standard_normal((300, 10)) + train[:, None]
    unseen = rng.standard_normal((300, 10)) + held_out[:, None]

    def fit_and_score(labels: BoolArray) -> np.ndarray:
        slope = features[labels].mean(axis=0) - features[~labels].mean(axis=0)
        return unseen @ slope + leak * held_out

    assert low <= shuffled_auroc(fit_and_score, train, held_out, seed=0) <= high
