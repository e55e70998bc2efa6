"""The probe's subspace, and random ones that change states as much."""

from __future__ import annotations

import numpy as np
import pytest

from probes.causal.directions import Null, Spread, random_basis, spread, subspace
from probes.errors import LabError
from probes.manifest import Aggregation, AggregationKind
from probes.serving import Served

WIDTH = 24


def uneven(rows: int = 4000) -> Spread:
    """Spread a thousand times wider along some axes than along others, around a mean far from 0."""
    draws = np.random.default_rng(0)
    states = draws.normal(size=(rows, WIDTH)) * np.geomspace(0.01, 10, WIDTH) + 50.0
    return spread([states[: rows // 2], states[rows // 2 :]])


def served(columns: np.ndarray, kind: AggregationKind) -> Served:
    heads = columns.shape[1] if kind is AggregationKind.MULTIMAX else 1
    return Served(
        columns.astype(np.float32), np.zeros(columns.shape[1], np.float32), Aggregation(kind=kind, heads=heads)
    )


def test_spread_is_the_covariance_of_all_states() -> None:
    draws = np.random.default_rng(1)
    states = draws.normal(size=(300, 5)) @ draws.normal(size=(5, 5)) + 1000.0
    found = spread([states[:7], states[7:200], states[200:]])
    assert found.mean == pytest.approx(states.mean(axis=0))
    rebuilt = found.vectors @ np.diag(found.values) @ found.vectors.T
    assert rebuilt == pytest.approx(np.cov(states.T, bias=True), abs=1e-6)
    assert found.rows == 300


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("place", [1, 10, 20])
def test_matched_random_directions_change_states_as_much_as_the_probe_does(place: int, rank: int) -> None:
    around = uneven()
    basis = np.eye(WIDTH)[:, place : place + rank]
    for seed in range(10):
        found = random_basis(Null.MATCHED, around, basis, np.random.default_rng(seed))
        assert found.T @ found == pytest.approx(np.eye(rank), abs=1e-9)
        assert around.variance(found) == pytest.approx(around.variance(basis), rel=1e-3)


def test_isotropic_random_directions_do_not() -> None:
    around = uneven()
    basis = np.eye(WIDTH)[:, :1]
    found = [random_basis(Null.ISOTROPIC, around, basis, np.random.default_rng(seed)) for seed in range(10)]
    assert min(around.variance(one) for one in found) > 100 * around.variance(basis)


def test_the_same_seed_draws_the_same_direction_and_another_seed_another() -> None:
    around, basis = uneven(), np.eye(WIDTH)[:, 5:6]
    one, same, other = (random_basis(Null.MATCHED, around, basis, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert abs(float((one.T @ other).item())) < 0.99


def test_the_subspace_of_an_attention_probe_is_what_its_value_reads() -> None:
    columns = np.eye(WIDTH)[:, [2, 7]]
    found = subspace(served(columns * 3, AggregationKind.ATTENTION))
    assert found.rank == 1
    assert found.basis[:, 0] ** 2 == pytest.approx(columns[:, 0])
    assert found.along == pytest.approx(columns[:, 0])


def test_the_subspace_of_a_multimax_spans_its_heads_and_counts_no_direction_twice() -> None:
    columns = np.stack([np.eye(WIDTH)[0], np.eye(WIDTH)[0] * 2, np.eye(WIDTH)[0] + np.eye(WIDTH)[1]], axis=1)
    found = subspace(served(columns, AggregationKind.MULTIMAX))
    assert found.rank == 2
    assert found.basis @ found.basis.T @ columns == pytest.approx(columns, abs=1e-6)
    assert np.all(found.along @ columns > 0)


def test_heads_that_cancel_each_other_have_no_direction() -> None:
    columns = np.stack([np.eye(WIDTH)[0], -np.eye(WIDTH)[0]], axis=1)
    with pytest.raises(LabError, match="cancel"):
        subspace(served(columns, AggregationKind.MULTIMAX))


def test_one_state_has_no_spread() -> None:
    with pytest.raises(LabError, match="not enough states"):
        spread([np.ones((1, 3))])
