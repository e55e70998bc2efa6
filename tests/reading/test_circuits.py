"""Circuits in a plan: further columns at their tap points, never another pass; what is read of them is what the lab reads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.circuits.artifact import Circuit, load_circuit, save_circuit
from probes.circuits.usual import usual
from probes.circuits.watching import read as read_by_the_lab
from probes.registry import load_all
from sidecar.circuits.activity import SINKS, Reader, Rows
from sidecar.circuits.circuit import Bank
from sidecar.errors import Rejected
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Plan, build_plan
from sidecar.reading.read import Readings, read
from sidecar.types import ElementType, FloatArray, StepBatch, TapPoint
from sidecar.worker import planwire
from tests.circuits.small import manifest_fields, write_circuit
from tests.probes.builders import MODEL, WIDTH, write_artifact
from tests.reading.plans import batch_of, tensor_of

HEADS, MLP, RESID = (TapPoint.parse(f"blocks.{place}") for place in ("3.attn_heads", "2.mlp_out", "2.resid_post"))
HEADS_WIDTH = 12  # another than the residual stream's 8
STATES = {
    HEADS: np.random.default_rng(1).normal(size=(6, HEADS_WIDTH)).astype(np.float32),
    MLP: np.random.default_rng(2).normal(size=(6, WIDTH)).astype(np.float32),
    RESID: np.random.default_rng(3).normal(size=(6, WIDTH)).astype(np.float32),
}
SCALE = {"mu": 0.5, "sigma": 2.0, "active": 1.5}


def write_everything(folder: Path, **changes: Any) -> Circuit:
    """A circuit with everything that one may ask for: a head's built-in norm, an energy, a direction, a basis with T^2 and SPE."""
    rows = np.random.default_rng(4).normal(size=(40, WIDTH))
    known = usual(RESID, rows, np.arange(40), 3, 0)
    energy = np.zeros((HEADS_WIDTH, 2), np.float32)
    energy[:6] = np.random.default_rng(5).normal(size=(6, 2))
    fields = manifest_fields(
        places=[
            {"tap_point": MLP.name, "width": WIDTH, "columns": 1},
            {"tap_point": RESID.name, "width": WIDTH, "columns": 4},
            {"tap_point": HEADS.name, "width": HEADS_WIDTH, "columns": 2, "heads": 2},
        ],
        nodes=[
            {
                "node": f"{HEADS.name}.1",
                "effect": 0.5,
                "readout": {"kind": "energy", "columns": 0, "weight": 1.0, **SCALE},
            },
            {
                "node": f"{HEADS.name}.0",
                "effect": 0.2,
                "readout": {"kind": "energy", "columns": 2, "weight": 0.5, **SCALE},
            },
            {"node": MLP.name, "effect": 0.3, "readout": {"kind": "direction", "weight": -0.5, **SCALE}},
        ],
        basis=known.about.model_dump(mode="json"),
    )
    given = {
        MLP: np.random.default_rng(6).normal(size=(WIDTH, 1)).astype(np.float32),
        RESID: known.columns,
        HEADS: energy,
    }
    save_circuit(folder, fields | changes, given)
    return load_circuit(folder, root=folder)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Probes at two of the tap points, and two circuits that share all three."""
    for where in (MLP, RESID):
        write_artifact(tmp_path, f"probe_{where.site.value}", tap_point=where.name)
    write_everything(tmp_path / "whole")
    write_everything(tmp_path / "again", name="again")
    return build_plan(1, load_all(tmp_path, limit=9), MODEL)


def reading(plan: Plan, batch: StepBatch) -> Readings:
    kernels = Kernels(0.02, products=["numpy_f32"])
    kernels.bind(plan)
    return read(plan, batch, kernels)


def raw(states: dict[TapPoint, FloatArray] = STATES, dtype: ElementType = ElementType.F32) -> StepBatch:
    return batch_of(*(tensor_of(where, rows, dtype) for where, rows in states.items()), first=9)


def projected(plan: Plan, by: Plan | None = None) -> StepBatch:
    """What taps send that multiply by themselves, with this plan or an earlier one."""
    by = plan if by is None else by
    tensors = [
        tensor_of(
            where, np.column_stack([rows @ by.taps[where].directions, np.square(rows).sum(axis=1)]), projected=True
        )
        for where, rows in STATES.items()
    ]
    return batch_of(*tensors, first=9, generation=by.generation)


def activities(plan: Plan, got: Readings) -> np.ndarray:
    """[N, T], of all circuits in turn."""
    assert got.circuits is not None
    values = got.circuits.values
    at = np.zeros(len(values), np.intp)
    bank = Bank(tuple(one.circuit for one in plan.circuits))
    return Reader(bank).read(Rows(values, np.full(len(values), SINKS, np.uint32), at, at, ("",))).nodes


@pytest.mark.parametrize("how", ["raw", "projected"])
def test_what_is_read_of_live_rows_is_what_the_lab_reads_of_the_same_states(
    plan: Plan, tmp_path: Path, how: str
) -> None:
    got = reading(plan, raw() if how == "raw" else projected(plan))
    lab = read_by_the_lab(load_circuit(tmp_path / "whole", root=tmp_path), STATES).nodes
    assert got.circuits is not None
    assert got.circuits.read == set(STATES)
    np.testing.assert_allclose(activities(plan, got), np.concatenate([lab, lab]), rtol=1e-4, atol=1e-5)
    assert [one.unusual for one in plan.circuits] == [(3, 4), (3, 4)]


def test_circuits_add_columns_behind_those_of_probes_whose_readings_stay_as_they_are(
    plan: Plan, tmp_path: Path
) -> None:
    alone = build_plan(1, [one for one in load_all(tmp_path, limit=9) if not isinstance(one, Circuit)], MODEL)
    assert plan.taps[MLP].columns == ("probe_mlp_out", "again", "going_on")
    assert (plan.taps[HEADS].width, plan.taps[HEADS].signals, plan.taps[HEADS].control) == (
        HEADS_WIDTH,
        slice(0, 0),
        None,
    )
    without = {where: rows for where, rows in STATES.items() if where != HEADS}
    with_circuits, before = reading(plan, raw()), reading(alone, raw(without))
    np.testing.assert_allclose(with_circuits.values, before.values, rtol=1e-5)
    assert np.array_equal(with_circuits.valid, before.valid)
    assert before.circuits is None


def test_rows_of_another_width_than_the_sites_own_are_refused(plan: Plan) -> None:
    with pytest.raises(Rejected) as refused:
        reading(plan, raw(STATES | {HEADS: STATES[MLP]}))
    assert refused.value.field == "step_batch.tensors[0].columns"
    assert plan.row_width(TapPoint(0)) == WIDTH
    assert plan.row_width(replace(HEADS, layer=0)) is None


def test_a_circuit_that_reads_rows_of_another_width_than_others_there_is_refused(tmp_path: Path) -> None:
    write_everything(tmp_path / "whole")
    write_circuit(tmp_path / "narrow", name="narrow")  # rows of 8 at the same heads
    plan = build_plan(1, load_all(tmp_path, limit=9), MODEL)
    (refused,) = [one for one in plan.artifacts if one.evidence == "refused"]
    assert "12 wide" in refused.reason or "8 wide" in refused.reason
    assert len(plan.circuits) == 1


def test_a_row_that_overflows_is_no_number_in_every_place_of_its_tap_point_and_other_rows_are_as_they_are(
    plan: Plan,
) -> None:
    huge = {where: rows.copy() for where, rows in STATES.items()}
    huge[RESID][2] = 3e38
    clean, got = reading(plan, raw()).circuits, reading(plan, raw(huge)).circuits
    assert clean is not None
    assert got is not None
    others = np.arange(6) != 2
    np.testing.assert_array_equal(got.values[others], clean.values[others])
    columns = plan.taps[RESID].circuits
    assert columns is not None
    assert np.isnan(got.values[2, columns.places]).all()
    assert np.isnan(got.values[2, columns.norm])
    heads = plan.taps[HEADS].circuits
    assert heads is not None
    assert np.isfinite(got.values[2, heads.places]).all()


def test_a_tap_point_that_is_missing_or_thinned_is_not_told_as_read(plan: Plan) -> None:
    from sidecar.reading.shed import Shed

    part = {where: rows for where, rows in STATES.items() if where != RESID}
    got = reading(plan, raw(part)).circuits
    assert got is not None
    assert got.read == {HEADS, MLP}
    kernels = Kernels(0.02, products=["numpy_f32"])
    kernels.bind(plan)
    thinned = read(plan, raw(), kernels, Shed(4)).circuits
    assert thinned is not None
    assert thinned.read == set()
    assert np.isnan(thinned.values).all()


def test_a_circuit_is_read_from_readings_of_the_plan_before(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "probe_mlp_out" / "manifest.json").unlink()
    (tmp_path / "probe_mlp_out" / "weights.safetensors").unlink()
    (tmp_path / "probe_mlp_out").rmdir()
    after = build_plan(2, load_all(tmp_path, limit=9), MODEL, before=plan)
    got = reading(after, projected(after, by=plan))
    assert got.circuits is not None
    assert got.circuits.read == set(STATES)
    np.testing.assert_allclose(activities(after, got), activities(plan, reading(plan, raw())), rtol=1e-4, atol=1e-5)


def test_a_plan_with_circuits_is_the_same_after_its_way_to_the_worker(plan: Plan) -> None:
    memory = planwire.to_memory(plan)
    try:
        there = planwire.from_memory(memory)
    finally:
        os.close(memory)
    assert (there.circuits, there.circuit_places) == (plan.circuits, plan.circuit_places)
    assert {where: tap.circuits for where, tap in there.taps.items()} == {
        where: tap.circuits for where, tap in plan.taps.items()
    }
    assert np.array_equal(activities(there, reading(there, raw())), activities(plan, reading(plan, raw())))
