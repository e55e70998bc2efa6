"""Weights by intervention: no other sum of the readings follows the circuit, and nothing but the circuit, as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.circuits.weighing import Moved, weigh

Array = np.ndarray


def ratio(moved: Moved, weights: Array) -> float:
    return float(moved.own @ weights / np.abs(moved.others @ weights).max())


def drawn(seed: int, readings: int) -> Moved:
    draws = np.random.default_rng(seed)
    return Moved(draws.uniform(0.1, 3, readings), draws.normal(0, 1, (40, readings)))


@given(st.integers(0, 1000), st.integers(1, 8))
def test_no_other_weights_move_the_score_more_times_as_far_with_the_circuit_as_with_the_worst_other_node(
    seed, readings
):
    moved = drawn(seed, readings)
    found = weigh(moved, np.ones(readings))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    tried = np.random.default_rng(seed + 1).dirichlet(np.ones(readings), 200)
    best = max(ratio(moved, one) for one in [*tried, *np.eye(readings)])
    assert ratio(moved, found) >= best * (1 - 1e-7)


def test_weights_are_of_readings_in_units_of_sigma_so_that_the_score_does_not_know_in_what_they_were_measured():
    moved, scale = drawn(3, 4), np.array([1.0, 10.0, 0.1, 3.0])
    measured = Moved(moved.own * scale, moved.others * scale)
    np.testing.assert_allclose(weigh(measured, scale), weigh(moved, np.ones(4)), atol=1e-9)


def test_a_reading_that_follows_another_node_too_weighs_nothing_beside_one_that_does_not():
    moved = Moved(np.array([3.0, 3.0]), np.array([[3.0, 0.5], [0.0, 0.5]]))
    assert weigh(moved, np.ones(2)).tolist() == [0, 1]


def test_readings_that_the_circuit_takes_nothing_from_weigh_alike_and_are_left_to_the_gate():
    assert weigh(Moved(np.array([0.0, -1.0]), np.ones((3, 2))), np.ones(2)).tolist() == [0.5, 0.5]
