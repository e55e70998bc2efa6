"""Readouts: what they read of rows, in the service's own arithmetic; the score over them; and what is usual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.circuits.artifact import Circuit, load_circuit, save_circuit
from probes.circuits.manifest import ReadoutKind
from probes.circuits.nodes import Node
from probes.circuits.readouts import Look, energy, frozen_range, index, logistic, mass_mean, raw, score
from probes.circuits.usual import usual
from probes.circuits.watching import live, norms_wanted, own_layout, read, readings
from probes.circuits.weighing import Moved
from probes.errors import LabError
from sidecar.circuits.circuit import BINS
from sidecar.types import TapPoint
from tests.circuits.small import LAYER, MLP, columns, manifest_fields, write_circuit
from tests.probes.builders import WIDTH

HEAD, STREAM = Node(LAYER, 1), Node(TapPoint(2))
SPAN = HEAD.span(16, 2)


def rows(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def along(look: Look, states: np.ndarray) -> np.ndarray:
    return raw([look], {look.node.where: states}, heads=2)[0]


def test_an_energy_is_the_log_of_what_lies_in_the_subspace_that_the_head_writes_most_into():
    states = rows(50) * np.array([1] * 8 + [9, 5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
    look = energy(HEAD, SPAN, states, 2)
    assert look.columns.shape == (16, 2)
    assert not look.columns[:8].any()
    np.testing.assert_allclose(look.columns.T @ look.columns, np.eye(2), atol=1e-6)
    assert abs(look.columns[8, 0]) > 0.9
    np.testing.assert_allclose(along(look, states), np.log(((states @ look.columns) ** 2).sum(1)), rtol=1e-5)


def test_as_few_columns_are_taken_as_hold_nine_tenths_and_never_more_than_eight():
    one = np.outer(np.arange(1.0, 9.0), np.eye(16)[9])
    assert energy(HEAD, SPAN, one).columns.shape[1] == 1
    wide = rows(400, 64)
    assert energy(Node(LAYER, 0), slice(0, 64), wide).columns.shape[1] == 8


def test_a_heads_built_in_norm_takes_no_column_and_reads_all_of_it():
    states = rows(20)
    look = energy(HEAD, SPAN, states, 0)
    assert look.columns.shape == (16, 0)
    np.testing.assert_allclose(along(look, states), np.log((states[:, SPAN] ** 2).sum(1)), rtol=1e-5)


def test_an_ablated_head_reads_low_and_never_minus_infinity():
    silent = np.zeros((3, 16), np.float32)
    found = along(energy(HEAD, SPAN, rows(20), 2), silent)
    assert np.isfinite(found).all()
    assert (found < -60).all()


@pytest.mark.parametrize("fit", [mass_mean, logistic])
def test_a_direction_points_from_traffic_to_engaged_tokens(fit):
    engaged, idle = rows(40, seed=1), rows(90, seed=2)
    engaged[:, 3] += 4
    look = fit(STREAM, slice(0, 16), engaged, idle)
    assert look.kind is ReadoutKind.DIRECTION
    assert np.linalg.norm(look.columns) == pytest.approx(1, abs=1e-6)
    assert look.columns[3, 0] > 0.8
    assert along(look, engaged).mean() > along(look, idle).mean() + 3


def test_a_direction_between_rows_that_are_alike_is_refused():
    alike = np.ones((5, 16), np.float32)
    with pytest.raises(LabError, match="the same whether"):
        mass_mean(STREAM, slice(0, 16), alike, alike)


def test_an_index_reads_one_coordinate_as_it_is():
    states = rows(7)
    np.testing.assert_array_equal(along(index(HEAD, SPAN, 16, 2), states), states[:, 10].astype(np.float64))


def scored(engaged: np.ndarray, idle: np.ndarray):
    look = index(STREAM, slice(0, 16), 16, 0)
    return score(engaged[None], idle[None], np.arange(len(idle)) // 10, [look], Moved(np.ones(1), np.zeros((1, 1))))


def test_theta_is_the_95_percent_point_of_traffic_and_its_share_is_told_of_other_texts():
    draws = np.random.default_rng(3)
    engaged, idle = draws.normal(6, 1, 60), draws.normal(0, 1, 4000)
    found = scored(engaged, idle)
    fit = np.arange(4000) // 10 % 2 == 0
    (told,), judged = found.readouts, found.score
    values = (idle - told.mu) / told.sigma
    assert (told.weight, judged.bias) == (1, 0)
    assert (values[fit] > judged.theta).mean() == pytest.approx(0.05, abs=0.001)
    assert (values[~fit] > judged.theta).mean() == pytest.approx(judged.traffic_share)
    assert (told.mu, told.sigma) == (pytest.approx(idle[fit].mean()), pytest.approx(idle[fit].std()))
    assert told.active == pytest.approx(1.645, abs=0.15)
    assert judged.engaged_share > 0.95
    assert (judged.traffic_tokens, judged.engaged_tokens) == (2000, 30)


def test_a_score_wants_traffic_of_two_texts():
    look, moved = index(STREAM, slice(0, 16), 16, 0), Moved(np.ones(1), np.zeros((1, 1)))
    with pytest.raises(LabError, match="two texts"):
        score(np.ones((1, 4)), np.ones((1, 9)), np.zeros(9, np.intp), [look], moved)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=50).filter(lambda them: len(set(them)) > 1),
    st.floats(0, 1),
)
def test_theta_is_an_edge_of_a_range_that_holds_nearly_all_scores(scores, place):
    ordered = np.sort(np.array(scores))
    theta = float(ordered[int(place * (len(ordered) - 1))])
    low, high = frozen_range(ordered, theta)
    at = (theta - low) / (high - low) * BINS
    assert low < theta < high
    assert abs(at - round(at)) < 1e-6
    assert low <= np.quantile(ordered, 0.001)
    assert high >= np.quantile(ordered, 0.999)


def test_the_service_reads_of_an_artifact_what_its_manifest_says(tmp_path: Path):
    circuit = loaded(tmp_path)
    head, mlp = rows(9, WIDTH, 1), rows(9, WIDTH, 2)
    found = read(circuit, {LAYER: head, MLP: mlp})
    u = columns()
    energies = (np.log(((head @ u[LAYER]) ** 2).sum(1)) - 0.5) / 2.0
    directions = (mlp @ u[MLP])[:, 0]
    np.testing.assert_allclose(found.nodes, [energies, directions], rtol=1e-4, atol=1e-5)
    expected = energies - 0.5 * directions + 0.25
    np.testing.assert_allclose(found.scores[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.engaged[0], expected > 1.0)
    told = live(circuit.manifest, own_layout(circuit.manifest))
    assert (told.spec_hash, told.tokens) == (circuit.manifest.spec_hash, 4)
    assert (told.low, told.high, told.theta) == (-1.0, 3.0, 1.0)


def test_a_reading_that_is_no_number_is_neither_engaged_nor_anybody_elses_business(tmp_path: Path):
    circuit = loaded(tmp_path)
    head, mlp = rows(9, WIDTH, 1), rows(9, WIDTH, 2)
    clean = read(circuit, {LAYER: head, MLP: mlp})
    head[4, 5] = np.nan
    found = read(circuit, {LAYER: head, MLP: mlp})
    assert np.flatnonzero(~found.sound[0]).tolist() == [4]
    assert not found.engaged[0, 4]
    others = np.arange(9) != 4
    np.testing.assert_array_equal(found.scores[0, others], clean.scores[0, others])


def test_a_norm_is_asked_for_beside_the_columns(tmp_path: Path):
    fields = manifest_fields()
    fields["nodes"][0]["readout"] |= {"columns": 0}
    fields["places"][1]["columns"] = 0
    save_circuit(tmp_path / "a", fields, {MLP: columns()[MLP]})
    circuit = load_circuit(tmp_path / "a", root=tmp_path)
    assert norms_wanted(circuit.manifest) == (HEAD.name,)
    states = {LAYER: rows(5, WIDTH, 1), MLP: rows(5, WIDTH, 2)}
    np.testing.assert_allclose(
        readings(circuit, states)[:, -1], (states[LAYER][:, WIDTH // 2 :] ** 2).sum(1), rtol=1e-5
    )
    found = read(circuit, states).nodes[0]
    np.testing.assert_allclose(found, (np.log((states[LAYER][:, WIDTH // 2 :] ** 2).sum(1)) - 0.5) / 2, rtol=1e-4)


def test_t2_and_spe_are_read_off_columns_and_the_norm_as_they_are_defined(tmp_path: Path):
    draws = np.random.default_rng(4)
    spread = np.array([6, 4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    traffic = (draws.standard_normal((400, WIDTH)) * spread + np.arange(WIDTH)).astype(np.float32)
    where = TapPoint(5)
    found = usual(where, traffic, np.arange(400) // 5, rank=2, first=0)
    fields = manifest_fields(basis=found.about.model_dump())
    fields["places"].append({"tap_point": where.name, "width": WIDTH, "columns": 3})
    save_circuit(tmp_path / "a", fields, columns() | {where: found.columns})
    circuit = load_circuit(tmp_path / "a", root=tmp_path)
    seen = traffic[:50].copy()
    seen[0, 7] += 30  # outside the subspace
    seen[1, 0] += 90  # within it, and far out
    states = {LAYER: rows(50, WIDTH, 1), MLP: rows(50, WIDTH, 2), where: seen}
    t2, spe = read(circuit, states).nodes[-2:]
    u, mean = found.columns[:, :2].astype(float), found.columns[:, 2].astype(float)
    centred = seen - mean
    np.testing.assert_allclose(np.exp(t2), ((centred @ u) ** 2 / found.about.variances).sum(1), rtol=1e-3)
    np.testing.assert_allclose(np.exp(spe), ((centred - centred @ u @ u.T) ** 2).sum(1), rtol=1e-2, atol=1e-3)
    told = live(circuit.manifest, own_layout(circuit.manifest))
    assert told.weights[-2:] == (0.0, 0.0)
    assert [node.name for node in told.nodes[-2:]] == [f"{where.name}.t2", f"{where.name}.spe"]
    over = np.stack([t2 > told.nodes[-2].active, spe > told.nodes[-1].active])
    assert over[:, 0].tolist() == [False, True]
    assert over[:, 1].tolist() == [True, False]
    assert over[:, 2:].mean() < 0.05


def test_a_basis_wants_more_rows_than_directions():
    with pytest.raises(LabError, match="too few"):
        usual(TapPoint(5), rows(6, WIDTH), np.arange(6), rank=4, first=0)


def loaded(tmp_path: Path) -> Circuit:
    write_circuit(tmp_path / "a")
    return load_circuit(tmp_path / "a", root=tmp_path)
