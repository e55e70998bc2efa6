"""A NaN is the sender's fault and refused whole; an overflow of ours costs only the rows that it hits."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes.artifact import save_artifact
from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.types import TapPoint
from tests.builders import TAP, WIDTH, axis, manifest_fields, wire_batch
from tests.faults.survivor import standing
from tests.faults.values import ELEMENTS, NON_FINITE, as_tensor, bits
from tests.service.client import Client

ROWS = 3
UNREAD = TapPoint(TAP.layer + 1)  # no artifact reads there
LARGE = 1e20  # finite, and its square is not
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """An element type, and sound rows with one non-finite element anywhere."""
    dtype = draw(st.sampled_from(sorted(ELEMENTS)))
    elements = bits(np.random.default_rng(draw(st.integers(0, 99))).normal(size=(ROWS, WIDTH)), dtype)
    place = draw(st.integers(0, ROWS - 1)), draw(st.integers(0, WIDTH - 1))
    elements[place] = draw(st.sampled_from(NON_FINITE[dtype]))
    return dtype, elements


@SHARED
@given(spoiled(), st.sampled_from([TAP, UNREAD]))
def test_one_non_finite_element_anywhere_refuses_the_batch(survivor, spoiled, tap):
    dtype, elements = spoiled
    batch = wire_batch(tensors=[as_tensor(elements, dtype, tap)])
    survivor.refuses(batch, "non_finite", "step_batch.tensors[0].raw", rows=ROWS)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_the_largest_finite_value_of_each_type_is_no_infinity(survivor, dtype):
    elements = bits(np.zeros((ROWS, WIDTH)), dtype)
    elements[1, 5] = {"f32": 0x5F000000, "f16": 0x7BFF, "bf16": 0x5F00}[
        dtype
    ]  # f32, bf16: 2^63, whose square is finite
    survivor.client.good(tensors=[as_tensor(elements, dtype)])


@pytest.mark.parametrize("value", NON_FINITE["f32"])
@pytest.mark.parametrize("column", [0, -1])
def test_a_non_finite_reading_or_norm_of_a_projected_payload_refuses_the_batch(survivor, value, column):
    plan = control_pb2.FetchPlanResponse.FromString(survivor.client.call("ControlService/FetchPlan", b""))
    elements = np.zeros((ROWS, len(plan.tensors[0].columns) + 1), dtype="<u4")
    elements[2, column] = value
    batch = wire_batch(tensors=[as_tensor(elements, "f32", projected=True)], plan_generation=plan.generation)
    survivor.refuses(batch, "non_finite", "step_batch.tensors[0].projected", rows=ROWS)


def test_the_second_tap_point_is_named_when_its_rows_hold_the_nan(survivor):
    sound, spoiled = bits(np.zeros((ROWS, WIDTH)), "f32"), bits(np.zeros((ROWS, WIDTH)), "f32")
    spoiled[0, 0] = 0x7FC00000
    batch = wire_batch(tensors=[as_tensor(sound, "f32"), as_tensor(spoiled, "f32", UNREAD)])
    survivor.refuses(batch, "non_finite", "step_batch.tensors[1].raw", rows=2 * ROWS)


# Overflow: every element is finite, so the sender did nothing wrong.


def rows_of(*values: float) -> np.ndarray:
    rows = np.zeros((len(values), WIDTH), dtype=np.float32)
    rows[:, 0] = values
    return rows


def readings(client: Client) -> dict[str, tuple[int, float]]:
    return {one.name: (one.readings, one.mean * one.readings) for one in client.status().signals}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_that_overflow_are_dropped_alone_and_the_others_of_their_batch_are_scored(client, dtype):
    before = client.series()
    result = client.observe(wire_batch(tensors=[as_tensor(bits(rows_of(1.0, LARGE, 3.0), dtype), dtype)])).result
    assert result.outcome == ingest_pb2.OUTCOME_SCORED
    assert client.moved(before) == {
        "step_batches_received": 1,
        "step_batches_scored": 1,
        "rows_received": 3,
        "rows_scored": 2,
        "rows_dropped{score_non_finite}": 1,
    }
    assert readings(client)["first"] == (2, pytest.approx(sum(1 / (1 + np.exp(-np.array([1.0, 3.0]))))))
    client.good()


def test_a_request_keeps_its_score_when_one_of_its_rows_overflows(client):
    """The aggregate goes on as if the row had not been there, and no later row is spoiled by it."""
    hot = wire_batch(rows_of(9.0, LARGE), requests=[("hot", (0, 1))])
    cold = wire_batch(rows_of(-9.0, -9.0), requests=[("cold", (0, 1))])
    assert [one.request_id for one in client.observe(hot).result.verdicts] == ["hot"]
    assert not client.observe(cold).result.verdicts
    again = wire_batch(rows_of(-LARGE, 9.0), requests=[("hot", (2, 3))])
    assert [one.request_id for one in client.observe(again).result.verdicts] == ["hot"]
    assert readings(client)["first"][0] == 4


def test_a_batch_whose_rows_all_overflow_is_dropped_and_the_probes_do_not_move(client):
    client.good()
    before = client.series()
    result = client.observe(wire_batch(rows_of(LARGE, -LARGE, LARGE))).result
    assert (result.outcome, result.reason) == (ingest_pb2.OUTCOME_DROPPED, "score_non_finite")
    assert client.moved(before) == {
        "step_batches_received": 1,
        "step_batches_dropped{score_non_finite}": 1,
        "rows_received": 3,
        "rows_dropped{score_non_finite}": 3,
    }
    after = client.series()
    assert {k: v for k, v in standing(after).items() if "tokens_seen" not in k and "stage" not in k} == {
        k: v for k, v in standing(before).items() if "tokens_seen" not in k and "stage" not in k
    }
    client.good()


def test_a_direction_whose_product_overflows_costs_the_row_and_nothing_is_logged(serve, artifacts, lines):
    """The row's own norm is finite: only the product with a long direction is not."""
    save_artifact(artifacts / "long", manifest_fields("long"), axis(2) * np.float32(1e30), np.zeros(1, np.float32))
    with Client(serve()) as client:
        client.register()
        rows = np.zeros((2, WIDTH), dtype=np.float32)
        rows[0, 2] = 1e10
        before = client.series()
        result = client.observe(wire_batch(rows, requests=[("r", (0, 1))])).result
        assert result.outcome == ingest_pb2.OUTCOME_SCORED
        moved = client.moved(before)
        assert (moved["rows_scored"], moved["rows_dropped{score_non_finite}"]) == (1, 1)
        assert {name: count for name, (count, _) in readings(client).items()} == {"first": 1, "second": 1, "long": 1}
        client.good()
    assert not [line for line in lines if '"level": "error"' in line]


def test_grpc_answers_ok_for_what_is_dropped(client):
    assert client.observe(wire_batch(rows_of(LARGE, LARGE, LARGE))).code is grpc.StatusCode.OK
