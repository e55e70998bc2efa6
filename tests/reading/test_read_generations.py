"""A tap sends readings of the plan before for a moment: what has not changed is read, and nothing by two generations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probes.artifact import Artifact, load_artifact
from sidecar.errors import Rejected
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import REMEMBERED, Plan, build_plan
from sidecar.reading.read import Readings, read
from sidecar.types import StepBatch, TapPoint
from tests.builders import MODEL, TAP, WIDTH, write_control, write_probe
from tests.reading.plans import batch_of, tensor_of

STATES = np.random.default_rng(0).normal(size=(6, WIDTH)).astype(np.float32)
OTHER = TapPoint(2)


@pytest.fixture
def artifacts(tmp_path) -> dict[str, Artifact]:
    write_control(tmp_path)
    for column, name in enumerate(("a", "b", "c")):
        write_probe(tmp_path, name, column, offset=10.0 * column)
    write_probe(tmp_path, "d", 4, tap=OTHER)
    return {folder.name: load_artifact(folder, root=tmp_path) for folder in sorted(tmp_path.iterdir())}


def changed(root: Path, name: str, column: int) -> Artifact:
    write_probe(root / "changed", name, column)
    return load_artifact(root / "changed" / name, root=root / "changed")


def projection(plan: Plan, where: TapPoint = TAP) -> np.ndarray:
    return np.column_stack([STATES @ plan.taps[where].directions, np.square(STATES).sum(axis=1)])


def reading(plan: Plan, batch: StepBatch) -> Readings:
    kernels = Kernels(0.02, products=["numpy_f32"])
    kernels.bind(plan)
    return read(plan, batch, kernels)


def by_name(got: Readings) -> dict[str, np.ndarray]:
    """Readings of the signals that were read."""
    return {one.name: got.values[:, i] for i, one in enumerate(got.plan.signals) if got.valid[:, i].all()}


def test_signals_come_first_and_name_their_columns(artifacts):
    plan = build_plan(1, artifacts.values(), MODEL)
    tap = plan.taps[TAP]
    assert tap.columns == ("a", "b", "c", "control")
    assert tap.control is not None
    assert tap.control.column == 3
    assert [plan.signals[i].column for i in range(*tap.signals.indices(9))] == [0, 1, 2]
    assert plan.taps[OTHER].signals == slice(3, 4)


def test_the_tap_points_of_blocking_signals_are_named(artifacts):
    assert build_plan(1, artifacts.values(), MODEL, verdict_signals=frozenset({"d"})).verdict_taps == {OTHER}
    assert build_plan(1, artifacts.values(), MODEL).verdict_taps == frozenset()


def test_unchanged_signals_are_read_from_readings_of_the_plan_before(artifacts, tmp_path):
    """One left, one changed, one came, one stayed and moved by a column."""
    before = build_plan(1, artifacts.values(), MODEL)
    now = [changed(tmp_path, "new", 9), artifacts["a"], changed(tmp_path, "c", 8), artifacts["control"], artifacts["d"]]
    plan = build_plan(2, now, MODEL, before=before)
    got = reading(plan, batch_of(tensor_of(TAP, projection(before), projected=True), generation=1))
    assert got.generation == 1
    assert set(by_name(got)) == {"a"}
    np.testing.assert_allclose(by_name(got)["a"], STATES[:, 0], atol=1e-5)
    assert not got.values[~got.valid].any()
    assert (got.rows_scored, got.rows_without_plan) == (6, 0)
    assert got.taps[0].control_rows == 6


def test_its_offset_is_that_of_the_plan_in_force(artifacts):
    before = build_plan(1, artifacts.values(), MODEL)
    plan = build_plan(2, [artifacts["c"]], MODEL, before=before)
    got = reading(plan, batch_of(tensor_of(TAP, projection(before), projected=True), generation=1))
    np.testing.assert_allclose(by_name(got)["c"], STATES[:, 2] + 20.0, atol=1e-5)
    assert got.taps[0].control_rows == 0


def test_a_new_control_is_not_read_from_old_readings(artifacts, tmp_path):
    before = build_plan(1, [artifacts["a"], artifacts["control"]], MODEL)
    write_control(tmp_path / "new", column=3)
    control = load_artifact(tmp_path / "new" / "control", root=tmp_path / "new")
    plan = build_plan(2, [artifacts["a"], control], MODEL, before=before)
    got = reading(plan, batch_of(tensor_of(TAP, projection(before), projected=True), generation=1))
    assert (set(by_name(got)), got.taps[0].control_rows, got.rows_scored) == ({"a"}, 0, 6)


def test_readings_of_which_nothing_is_left_are_without_a_plan(artifacts, tmp_path):
    before = build_plan(1, [artifacts["a"]], MODEL)
    plan = build_plan(2, [changed(tmp_path, "a", 9), artifacts["d"]], MODEL, before=before)
    tensors = (tensor_of(TAP, projection(before), projected=True), tensor_of(OTHER, STATES))
    got = reading(plan, batch_of(*tensors, generation=1))
    assert set(by_name(got)) == {"d"}
    assert (got.rows_scored, got.rows_without_plan) == (6, 6)


def test_a_tap_point_that_the_old_plan_did_not_have_is_without_a_plan(artifacts):
    before = build_plan(1, [artifacts["a"]], MODEL)
    plan = build_plan(2, artifacts.values(), MODEL, before=before)
    got = reading(plan, batch_of(tensor_of(OTHER, projection(plan, OTHER), projected=True), generation=1))
    assert (got.rows_scored, got.rows_without_plan) == (0, 6)


def test_the_last_four_plans_are_remembered_and_no_more(artifacts):
    plan = build_plan(1, artifacts.values(), MODEL)
    rows = projection(plan)
    for generation in range(2, 7):
        plan = build_plan(generation, artifacts.values(), MODEL, before=plan)
    assert sorted(plan.earlier) == [2, 3, 4, 5]
    assert len(plan.earlier) == REMEMBERED
    for generation, read_rows in ((1, 0), (2, 6), (5, 6), (6, 6)):
        got = reading(plan, batch_of(tensor_of(TAP, rows, projected=True), generation=generation))
        assert (got.rows_scored, got.rows_without_plan) == (read_rows, 6 - read_rows)


def test_plans_of_another_model_are_forgotten(artifacts):
    before = build_plan(1, artifacts.values(), MODEL)
    assert build_plan(2, artifacts.values(), replace(MODEL, weights_digest="d" * 64), before=before).earlier == {}


def test_old_readings_of_a_wrong_width_are_refused(artifacts):
    before = build_plan(1, artifacts.values(), MODEL)
    plan = build_plan(2, [artifacts["a"]], MODEL, before=before)
    with pytest.raises(Rejected) as refused:
        reading(plan, batch_of(tensor_of(TAP, projection(plan), projected=True), generation=1))
    assert refused.value.field == "step_batch.tensors[0].columns"


def test_raw_rows_are_read_by_the_plan_in_force_whatever_the_tap_knew(artifacts):
    before = build_plan(1, artifacts.values(), MODEL)
    plan = build_plan(2, [artifacts["b"]], MODEL, before=before)
    got = reading(plan, batch_of(tensor_of(TAP, STATES), generation=1))
    assert got.generation == 2
    np.testing.assert_allclose(by_name(got)["b"], STATES[:, 1] + 10.0, atol=1e-5)


def test_a_sample_is_not_held_against_directions_that_did_not_make_its_readings(artifacts, tmp_path):
    from tests.reading.plans import sample_of

    before = build_plan(1, [artifacts["a"], artifacts["b"]], MODEL)
    plan = build_plan(2, [artifacts["a"], changed(tmp_path, "b", 9)], MODEL, before=before)
    tensor = tensor_of(TAP, projection(before), projected=True, sample=sample_of([0, 1], STATES))
    got = reading(plan, batch_of(tensor, generation=1))
    assert (got.taps[0].checked_rows, got.taps[0].wrong_rows) == (0, 0)
