"""What a well-formed message says that cannot be true: refused by its field, and no series comes of it."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.builders import LAYERS, WIDTH, wire_batch
from tests.faults.survivor import standing
from tests.faults.values import as_tensor, bits

S = "step_batch.segments"
ROWS = 3
HOUR_NS = 3600 * 10**9


def at(positions: list[int]) -> ingest_pb2.StepBatch:
    return wire_batch(requests=[("r", positions)])


def two_requests(first: list[int], second: list[int]) -> ingest_pb2.StepBatch:
    return wire_batch(requests=[("a", first), ("b", second)])


POSITIONS = {
    "equal": (at([4, 4]), f"{S}.positions[1]"),
    "falling": (at([0, 1, 0]), f"{S}.positions[2]"),
    "from the last to the first": (at([(1 << 32) - 1, 0]), f"{S}.positions[1]"),
    "in the second request": (two_requests([5, 6], [9, 9]), f"{S}.positions[3]"),
}


@pytest.mark.parametrize(("batch", "field"), POSITIONS.values(), ids=POSITIONS.keys())
def test_positions_that_do_not_increase_are_refused(survivor, batch, field):
    survivor.refuses(batch, "bad_positions", field)


def test_positions_may_fall_from_one_request_to_the_next(survivor):
    assert survivor.client.observe(two_requests([5, 6], [0, (1 << 32) - 1])).result.outcome == ingest_pb2.OUTCOME_SCORED


@pytest.mark.parametrize("phase", [0, 5, 99, -1])
def test_a_phase_that_is_not_known_is_refused(survivor, phase):
    batch = two_requests([0], [0])
    batch.segments.phases[1] = phase
    survivor.refuses(batch, "bad_enum", f"{S}.phases[1]")


def at_tap(layer: int = 1, site: int = ingest_pb2.SITE_RESID_POST, **changes: Any) -> ingest_pb2.StepBatch:
    tensor = as_tensor(bits(np.zeros((ROWS, WIDTH)), "f32"), "f32")
    tensor.tap_point.layer, tensor.tap_point.site = layer, site
    return wire_batch(tensors=[tensor], **changes)


@pytest.mark.parametrize("layer", [LAYERS, LAYERS + 1, 654321, (1 << 32) - 1])
def test_a_layer_that_the_model_does_not_have_is_refused(survivor, layer):
    survivor.refuses(at_tap(layer), "unknown_tap_point", "step_batch.tensors[0].tap_point.layer", rows=ROWS)


@pytest.mark.parametrize("site", [0, 4, 99, -1])
def test_a_site_that_is_not_known_is_refused(survivor, site):
    survivor.refuses(at_tap(site=site), "bad_enum", "step_batch.tensors[0].tap_point.site")


def test_a_site_that_nothing_reads_is_dropped_and_makes_no_series(survivor):
    before = survivor.client.series()
    result = survivor.client.observe(at_tap(site=ingest_pb2.SITE_MLP_OUT)).result
    assert (result.outcome, result.reason) == (ingest_pb2.OUTCOME_DROPPED, "no_plan")
    assert survivor.client.series().keys() == before.keys()


@pytest.mark.parametrize("generation", [1234, (1 << 64) - 1])
@pytest.mark.parametrize("kind", ["raw", "projected"])
def test_a_plan_generation_that_never_was_is_refused(survivor, generation, kind):
    tensor = as_tensor(bits(np.zeros((ROWS, WIDTH)), "f32"), "f32", projected=kind == "projected")
    batch = wire_batch(tensors=[tensor], plan_generation=generation)
    survivor.refuses(batch, "unknown_generation", "step_batch.plan_generation", rows=ROWS)


def test_a_projected_payload_without_its_generation_is_refused(survivor):
    tensor = as_tensor(bits(np.zeros((ROWS, WIDTH)), "f32"), "f32", projected=True)
    survivor.refuses(wire_batch(tensors=[tensor]), "missing", "step_batch.plan_generation")


def test_a_projected_payload_of_another_width_is_refused(survivor):
    tensor = as_tensor(bits(np.zeros((ROWS, WIDTH)), "f32"), "f32", projected=True)
    generation = survivor.client.status().plan_generation
    batch = wire_batch(tensors=[tensor], plan_generation=generation)
    survivor.refuses(batch, "bad_shape", "step_batch.tensors[0].columns", rows=ROWS)


def test_an_engine_that_did_not_register_is_refused_on_its_own(survivor):
    """By Observe; on a stream that belongs to another engine it is the stream that is wrong, see test_streams."""
    client = survivor.client
    before = client.series()
    answer = client.observe(wire_batch(engine_id="engine-77"))
    assert (answer.code, answer.text) == (grpc.StatusCode.INVALID_ARGUMENT, "unknown_engine")
    assert answer.field == "step_batch.engine_id"
    assert client.moved(before) == {
        "step_batches_received": 1,
        "step_batches_rejected{unknown_engine}": 1,
        "rows_received": 3,
        "rows_rejected{unknown_engine}": 3,
    }
    assert standing(client.series()) == standing(before)
    survivor.scores()


@pytest.mark.parametrize(
    "taken_ns",
    [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, time.time_ns() // 1000, time.time_ns() - 2 * HOUR_NS],
    ids=["0", "1", "2^63-1", "2^63", "2^64-1", "microseconds", "two hours ago"],
)
def test_an_absurd_time_is_refused(survivor, taken_ns):
    survivor.refuses(wire_batch(taken_ns=taken_ns), "bad_timestamp", "step_batch.taken_ns")


def test_a_time_two_hours_ahead_is_refused(survivor):
    survivor.refuses(wire_batch(taken_ns=time.time_ns() + 2 * HOUR_NS), "bad_timestamp", "step_batch.taken_ns")


ABSURD = {
    "tokens_computed": ({"tokens_computed": 1 << 60}, "traffic.tokens_computed"),
    "requests": ({"requests": (1 << 64) - 1}, "traffic.requests"),
    "unseen": ({"unseen": [ingest_pb2.Unseen(reason=2, tokens=1 << 60)]}, "traffic.unseen[0].tokens"),
    "tap": ({"tap": ingest_pb2.TapLedger(unknown=1 << 60)}, "traffic.tap.unknown"),
    "more of an encoder than of all": (
        {"tokens_computed": 5, "encoder_tokens_computed": 6},
        "traffic.encoder_tokens_computed",
    ),
    "more of an encoder left out than of all": (
        {"tokens_computed": 5, "encoder_tokens_computed": 5, "encoder_tokens_left_out": 1},
        "traffic.encoder_tokens_left_out",
    ),
}


@pytest.mark.parametrize(("changes", "field"), ABSURD.values(), ids=ABSURD.keys())
def test_a_report_of_absurd_counts_is_refused_with_its_batch(survivor, changes, field):
    """By Observe: a count that a metric cannot hold would otherwise break every later status and scrape."""
    client = survivor.client
    report = ingest_pb2.TrafficReport(engine_id="engine-0", **changes)
    request = ingest_pb2.ObserveRequest(step_batch=wire_batch(), traffic=report)
    before = client.series()
    answer = client.observe(request.SerializeToString())
    assert (answer.code, answer.text, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_count", field)
    assert client.moved(before) == {"step_batches_received": 1, "step_batches_rejected{bad_count}": 1}
    assert standing(client.series()) == standing(before)
    survivor.scores()


def test_an_engine_that_restarts_again_and_again_with_high_counts_does_not_break_the_status(client):
    stream = client.stream()
    for _ in range(2100):  # 2,048 times 2^53 is more than a uint64 holds
        for tokens in (1 << 53, 0):
            report = ingest_pb2.TrafficReport(engine_id="engine-0", tokens_computed=tokens)
            stream.send(ingest_pb2.StreamRequest(traffic=report))
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    assert client.status().coverage[0].expected == (1 << 64) - 1
    client.scrape()
    stream.cancel()
