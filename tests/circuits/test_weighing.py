"""Weights by intervention: those that tell the most, as far as nothing but the circuit moves the score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from probes.circuits.weighing import RATIO, Moved, weigh

Array = np.ndarray


def ratio(moved: Moved, weights: Array) -> float:
    return float(moved.own @ weights / np.abs(moved.others @ weights).max())


def drawn(seed: int, readings: int, noise: float) -> Moved:
    draws = np.random.default_rng(seed)
    return Moved(draws.uniform(0.1, 3, readings), noise * draws.normal(0, 1, (40, readings)))


@given(st.integers(0, 1000), st.integers(1, 8), st.floats(0.01, 1.0))
def test_the_ratio_is_what_is_wanted_or_no_other_weights_have_a_larger_one(seed, readings, noise):
    moved, telling = drawn(seed, readings, noise), np.random.default_rng(seed + 1).uniform(0.1, 1, readings)
    found = weigh(moved, np.ones(readings), telling)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    tried = [*np.random.default_rng(seed + 2).dirichlet(np.ones(readings), 200), *np.eye(readings)]
    best = max(ratio(moved, one) for one in tried)
    assert ratio(moved, found) >= min(RATIO, best) * (1 - 1e-6)


@given(st.integers(0, 1000), st.integers(2, 8))
def test_what_tells_the_most_is_moved_no_further_than_the_ratio_asks_for(seed, readings):
    moved, telling = drawn(seed, readings, 0.07), np.random.default_rng(seed + 1).uniform(0.1, 1, readings)
    found = weigh(moved, np.ones(readings), telling)
    if ratio(moved, telling) >= RATIO:
        np.testing.assert_allclose(found, telling / telling.sum())
    else:
        assume(ratio(moved, found) >= RATIO)
        assert ratio(moved, found) == pytest.approx(RATIO, rel=1e-6)


def test_weights_are_of_readings_in_units_of_sigma_so_that_the_score_does_not_know_in_what_they_were_measured():
    moved, scale, telling = drawn(3, 4, 0.5), np.array([1.0, 10.0, 0.1, 3.0]), np.ones(4)
    measured = Moved(moved.own * scale, moved.others * scale)
    np.testing.assert_allclose(weigh(measured, scale, telling), weigh(moved, np.ones(4), telling), atol=1e-9)


def test_a_reading_that_follows_another_node_too_weighs_nothing_beside_one_that_hardly_does():
    moved = Moved(np.array([3.0, 3.0]), np.array([[3.0, 0.5], [0.0, 0.5]]))
    assert weigh(moved, np.ones(2), np.array([0.9, 0.1])).tolist() == [0, 1]


def test_readings_that_the_circuit_takes_nothing_from_stay_as_they_are_and_are_left_to_the_gate():
    moved = Moved(np.array([0.0, -1.0]), np.ones((3, 2)))
    assert weigh(moved, np.ones(2), np.array([3.0, 1.0])).tolist() == [0.75, 0.25]


def test_no_reading_counts_against_the_circuit():
    assert weigh(Moved(np.ones(2), np.zeros((1, 2))), np.ones(2), np.array([2.0, -1.0])).tolist() == [1, 0]
