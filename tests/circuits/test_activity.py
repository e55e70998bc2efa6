"""Readings to activities: the arithmetic of each readout, what is left out, and that nothing spoils its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.circuits.activity import SINKS, Reader, Rows
from sidecar.circuits.circuit import Bank, Circuit, Node
from tests.circuits.live import circuit, read, step, two


def rows_of(readings: np.ndarray, positions: np.ndarray | None = None) -> Rows:
    count = len(readings)
    at = np.zeros(count, np.intp)
    where = np.full(count, SINKS) if positions is None else positions
    return Rows(readings.astype(np.float32), where.astype(np.uint32), at, at, ("a",))


def one(*nodes: Node, weights: tuple[float, ...] | None = None, bias: float = 0.0, theta: float = 0.0) -> Bank:
    return Bank((Circuit("c", "m", "s", nodes, weights or (1.0,) * len(nodes), bias, theta, -9.0, 9.0),))


def test_a_direction_is_its_column_standardised_and_an_energy_the_log_of_a_squared_length():
    h = np.random.default_rng(0).normal(size=(50, 4))
    bank = one(Node.direction("d", 3, mu=0.5, sigma=2.0), Node.energy("e", (0, 2), mu=1.0, sigma=3.0))
    found = read(bank, rows_of(h)).nodes
    np.testing.assert_allclose(found[0], (h[:, 3] - 0.5) / 2.0, rtol=1e-5)
    np.testing.assert_allclose(found[1], (np.log(h[:, 0] ** 2 + h[:, 2] ** 2) - 1.0) / 3.0, rtol=1e-4, atol=1e-5)


def test_t2_and_spe_are_the_two_parts_of_a_rows_distance_from_its_mean():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(16, 3)))[0]
    mean, variance = rng.normal(size=16), np.array([4.0, 2.0, 1.0])
    h = rng.normal(size=(40, 16))
    readings = np.column_stack((h @ basis, h @ mean, (h**2).sum(axis=1)))
    centre, length = basis.T @ mean, float(mean @ mean)
    bank = one(
        Node.inside("t2", (0, 1, 2), centre, variance, limit=5.0),
        Node.outside("spe", (0, 1, 2), centre, 3, 4, length, limit=20.0),
    )
    found = read(bank, rows_of(readings)).nodes
    inside = (h - mean) @ basis
    outside = ((h - mean) ** 2).sum(axis=1) - (inside**2).sum(axis=1)
    np.testing.assert_allclose(found[0], np.log((inside**2 / variance).sum(axis=1)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[1], np.log(outside), rtol=1e-3, atol=1e-3)


def test_the_score_is_the_weighted_sum_and_engaged_is_above_theta():
    bank = one(Node.direction("a", 0), Node.direction("b", 1), weights=(2.0, -1.0), bias=0.5, theta=1.0)
    found = read(bank, rows_of(np.array([[1.0, 1.0], [1.0, 1.5], [0.75, 1.0]])))
    np.testing.assert_allclose(found.scores, [[1.5, 1.0, 1.0]])
    assert found.engaged.tolist() == [[True, False, False]]


def test_an_ablated_head_reads_as_the_floor_and_is_not_left_out():
    found = read(one(Node.energy("e", (0, 1)), Node.norm("n", 2)), rows_of(np.zeros((2, 3))))
    assert found.sound.all()
    assert (found.nodes < -60).all()


def test_the_first_four_positions_are_left_out_and_counted_by_slice():
    rng = np.random.default_rng(2)
    rows = step(rng, 500)
    found = read(two(), rows)
    left_out = rows.positions < SINKS
    assert found.nodes.shape[1] == (~left_out).sum()
    assert found.sinks.tolist() == [int((left_out & (rows.slices == at)).sum()) for at in range(3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_leaves_out_its_row_in_its_circuit_and_changes_nothing_else(bad):
    rng = np.random.default_rng(3)
    rows = step(rng, 64)
    rows.positions[:] = SINKS
    clean = read(two(), rows)
    rows.readings[10, 1] = bad  # a column of the first circuit
    spoilt = read(two(), rows)
    assert not spoilt.sound[0, 10]
    assert not spoilt.engaged[0, 10]
    assert (spoilt.nodes[:3, 10] == 0).all()
    assert spoilt.sound.sum() == spoilt.sound.size - 1
    elsewhere = np.arange(64) != 10
    np.testing.assert_array_equal(spoilt.nodes[:, elsewhere], clean.nodes[:, elsewhere])
    np.testing.assert_array_equal(spoilt.scores[1], clean.scores[1])


def test_a_rows_activity_is_the_same_bits_in_whatever_step_it_comes():
    rng = np.random.default_rng(4)
    bank = one(Node.energy("e", (0, 1, 2)), Node.direction("d", 3))
    h = rng.normal(size=(200, 4))
    whole = read(bank, rows_of(h))
    alone = np.concatenate([read(bank, rows_of(h[at : at + 1])).scores for at in range(200)], axis=1)
    np.testing.assert_array_equal(whole.scores, alone)


def test_no_rows_give_no_activity():
    found = Reader(two()).read(step(np.random.default_rng(5), 0))
    assert found.nodes.shape == (5, 0)
    assert found.sinks.sum() == 0


@pytest.mark.parametrize("change", ["slices", "sessions"])
def test_a_slice_or_session_that_does_not_exist_is_refused(change):
    rows = step(np.random.default_rng(6), 8)
    getattr(rows, change)[3] = 99
    with pytest.raises(ValueError, match="row is of a"):
        read(two(), rows)


def test_a_bank_is_of_one_model_and_has_at_most_eight_slices():
    with pytest.raises(ValueError, match="two models"):
        Bank((circuit("a"), circuit("b", model_hash="x" * 64)))
    with pytest.raises(ValueError, match="at most 7"):
        Bank((circuit(),), tuple(map(str, range(8))))
    bank = Bank((circuit(),), tuple(map(str, range(7))))
    assert len(bank.slices) == 8
    assert bank.slices[bank.slice_of("never heard of")] == "other"
    assert Bank((circuit(),)).slices[Bank((circuit(),)).slice_of("anything")] == "all"
