"""Numbers that do not fit the bytes, or one another."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.config import Limits
from sidecar.errors import Rejected
from sidecar.ingest.decode import Decoder
from tests.builders import TAP, WIDTH, wire_batch, wire_segments, wire_tap

ROWS = 3
T = "step_batch.tensors[0]"
S = "step_batch.segments"


def tensor(width: int = WIDTH, **changes: Any) -> ingest_pb2.TapTensor:
    """A tensor of the default batch's three rows, consistent but for what is changed."""
    fields: dict[str, Any] = {
        "tap_point": wire_tap(),
        "dtype": ingest_pb2.ELEMENT_TYPE_F32,
        "rows": ROWS,
        "columns": width,
        "raw": np.zeros((ROWS, width), dtype="<f4").tobytes(),
    }
    return ingest_pb2.TapTensor(**{**fields, **changes})


def nothing(rows: int, columns: int) -> ingest_pb2.TapTensor:
    return tensor(rows=rows, columns=columns, raw=b"")


SIZE = ROWS * WIDTH * 4
TENSORS = {
    "one row too many": (tensor(rows=ROWS + 1), "bad_shape", f"{T}.rows"),
    "one row too few": (tensor(rows=ROWS - 1), "bad_shape", f"{T}.rows"),
    "zero rows": (nothing(0, WIDTH), "bad_shape", f"{T}.rows"),
    "zero columns": (nothing(ROWS, 0), "bad_shape", f"{T}.columns"),
    "65537 columns": (nothing(ROWS, 65537), "bad_shape", f"{T}.columns"),
    "2^32 x 2^32 and no data": (nothing(1 << 32, 1 << 32), "bad_shape", f"{T}.rows"),
    "3 x 2^62 and no data: wraps to 0 in 64 bits": (nothing(ROWS, 1 << 62), "bad_shape", f"{T}.columns"),
    "2^64-1 rows": (nothing((1 << 64) - 1, WIDTH), "bad_shape", f"{T}.rows"),
    "transposed": (tensor(rows=WIDTH, columns=ROWS), "bad_shape", f"{T}.rows"),
    "one byte short": (tensor(raw=bytes(SIZE - 1)), "size_mismatch", f"{T}.raw"),
    "one byte long": (tensor(raw=bytes(SIZE + 1)), "size_mismatch", f"{T}.raw"),
    "one element long": (tensor(raw=bytes(SIZE + 4)), "size_mismatch", f"{T}.raw"),
    "no bytes": (tensor(raw=b""), "size_mismatch", f"{T}.raw"),
    "f16 said, f32 sent": (tensor(dtype=ingest_pb2.ELEMENT_TYPE_F16), "size_mismatch", f"{T}.raw"),
    "f32 said, f16 sent": (tensor(raw=bytes(SIZE // 2)), "size_mismatch", f"{T}.raw"),
    "no dtype": (tensor(dtype=ingest_pb2.ELEMENT_TYPE_UNSPECIFIED), "bad_dtype", f"{T}.dtype"),
    "dtype of the future": (tensor(dtype=99), "bad_dtype", f"{T}.dtype"),
    "negative dtype": (tensor(dtype=-1), "bad_dtype", f"{T}.dtype"),
}


@pytest.mark.parametrize(("wire", "reason", "field"), TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_that_does_not_fit_is_refused_with_its_path(survivor, wire, reason, field):
    survivor.refuses(wire_batch(tensors=[wire]), reason, field)


def test_a_tensor_without_payload_is_refused(survivor):
    empty = tensor()
    empty.ClearField("raw")
    survivor.refuses(wire_batch(tensors=[empty]), "missing", f"{T}.raw")


@pytest.mark.parametrize("width", [WIDTH - 1, WIDTH + 1, 1])
def test_a_width_that_is_not_the_models_is_refused_and_its_rows_are_booked(survivor, width):
    survivor.refuses(wire_batch(tensors=[tensor(width)]), "bad_shape", f"{T}.columns", rows=ROWS)


def test_the_second_tensor_is_named_when_it_is_the_one_that_is_wrong(survivor):
    other = ingest_pb2.TapPoint(layer=TAP.layer + 1, site=ingest_pb2.SITE_RESID_POST)
    short = tensor(tap_point=other, raw=bytes(SIZE - 1))
    survivor.refuses(wire_batch(tensors=[tensor(), short]), "size_mismatch", "step_batch.tensors[1].raw")


def test_two_tensors_of_one_tap_point_are_refused(survivor):
    survivor.refuses(wire_batch(tensors=[tensor(), tensor()]), "bad_shape", "step_batch.tensors[1].tap_point")


def of_requests(count: int, each: int = 1) -> ingest_pb2.StepBatch:
    rows = np.zeros((count * each, WIDTH), dtype=np.float32)
    return wire_batch(rows, requests=[(f"r{i}", range(each)) for i in range(count)])


def with_segments(**columns: Any) -> ingest_pb2.StepBatch:
    """Two requests of two rows and one row; columns replace those of the table."""
    batch = wire_batch(requests=[("a", (0, 1)), ("b", (5,))])
    for name, values in columns.items():
        batch.segments.ClearField(name)
        getattr(batch.segments, name).extend(values)
    return batch


SEGMENTS = {
    "more rows than the limit": (of_requests(5, 13), "too_many", f"{S}.positions"),
    "more segments than the limit": (of_requests(9), "too_many", f"{S}.request_ids"),
    "rows that promise 2^32": (with_segments(rows=[1, (1 << 32) - 1]), "too_many", f"{S}.rows"),
    "a request without rows": (with_segments(rows=[3, 0]), "bad_shape", f"{S}.rows[1]"),
    "fewer positions than rows": (with_segments(positions=[0, 1]), "bad_shape", f"{S}.positions"),
    "more positions than rows": (with_segments(positions=[0, 1, 5, 6]), "bad_shape", f"{S}.positions"),
    "no positions": (with_segments(positions=[]), "bad_shape", f"{S}.positions"),
    "no rows": (with_segments(rows=[]), "bad_shape", f"{S}.rows"),
    "a phase too few": (with_segments(phases=[1]), "bad_shape", f"{S}.phases"),
    "no phases": (with_segments(phases=[]), "bad_shape", f"{S}.phases"),
    "a tenant too few": (with_segments(tenants=["t"]), "bad_shape", f"{S}.tenants"),
    "a canary too many": (with_segments(canaries=[False] * 3), "bad_shape", f"{S}.canaries"),
    "the same request twice": (with_segments(request_ids=["a", "a"]), "bad_shape", f"{S}.request_ids[1]"),
    "unseen of a segment that is not there": (
        with_segments(unseen=[ingest_pb2.SegmentUnseen(segment=2, reason=1, tokens=1)]),
        "bad_shape",
        f"{S}.unseen[0].segment",
    ),
    "unseen for no reason": (
        with_segments(unseen=[ingest_pb2.SegmentUnseen(segment=1, tokens=1)]),
        "bad_enum",
        f"{S}.unseen[0].reason",
    ),
    "a picture in a segment that is not there": (
        with_segments(media=[ingest_pb2.MediaSpan(segment=2, medium=1, tokens=1)]),
        "bad_shape",
        f"{S}.media[0].segment",
    ),
    "a piece of no medium": (
        with_segments(media=[ingest_pb2.MediaSpan(tokens=1)]),
        "bad_enum",
        f"{S}.media[0].medium",
    ),
    "a picture of no tokens": (
        with_segments(media=[ingest_pb2.MediaSpan(medium=1)]),
        "bad_count",
        f"{S}.media[0].tokens",
    ),
    "a picture that ends behind the last position": (
        with_segments(media=[ingest_pb2.MediaSpan(medium=1, position=(1 << 32) - 2, tokens=2)]),
        "bad_count",
        f"{S}.media[0].tokens",
    ),
    "more pictures than rows": (
        with_segments(media=[ingest_pb2.MediaSpan(medium=1, tokens=1)] * 4),
        "too_many",
        f"{S}.media",
    ),
    "more unseen tokens than a sequence has positions": (
        with_segments(unseen=[ingest_pb2.SegmentUnseen(segment=1, reason=1, tokens=1 << 32)]),
        "bad_count",
        f"{S}.unseen[0].tokens",
    ),
}


@pytest.mark.parametrize(("batch", "reason", "field"), SEGMENTS.values(), ids=SEGMENTS.keys())
def test_a_table_of_segments_that_does_not_fit_is_refused_with_its_path(survivor, batch, reason, field):
    survivor.refuses(batch, reason, field)


def test_a_stack_of_the_future_is_refused(survivor):
    where = ingest_pb2.TapPoint(layer=1, site=ingest_pb2.SITE_RESID_POST, stack=9)
    survivor.refuses(wire_batch(tensors=[tensor(tap_point=where)]), "bad_enum", f"{T}.tap_point.stack")


def test_an_encoder_that_the_model_has_not_is_refused(survivor):
    where = ingest_pb2.TapPoint(layer=1, site=ingest_pb2.SITE_RESID_POST, stack=ingest_pb2.STACK_ENCODER)
    survivor.refuses(
        wire_batch(tensors=[tensor(tap_point=where)]), "unknown_tap_point", f"{T}.tap_point.layer", rows=ROWS
    )


def test_too_many_tensors_are_refused(survivor):
    many = [tensor(tap_point=ingest_pb2.TapPoint(layer=i, site=ingest_pb2.SITE_RESID_POST)) for i in range(65)]
    survivor.refuses(wire_batch(tensors=many), "too_many", "step_batch.tensors")


def test_too_many_finished_requests_are_refused(survivor):
    ids = [f"r{i}" for i in range(4097)]
    survivor.refuses(wire_batch(finished_request_ids=ids), "too_many", "step_batch.finished_request_ids")


HUGE = ["2^32 x 2^32 and no data", "3 x 2^62 and no data: wraps to 0 in 64 bits", "2^64-1 rows", "65537 columns"]


@pytest.mark.parametrize("name", HUGE)
def test_a_shape_without_data_allocates_nothing_of_its_size(name):
    batch, decoder = wire_batch(tensors=[TENSORS[name][0]]), Decoder(Limits(), SystemClock())
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            decoder.step_batch(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_rows_that_promise_2_to_the_32_allocate_nothing_of_their_size():
    batch, decoder = with_segments(rows=[1, (1 << 32) - 1]), Decoder(Limits(), SystemClock())
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            decoder.step_batch(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10


def test_the_builder_of_these_tests_makes_sound_batches(survivor):
    survivor.client.good(tensors=[tensor()])
    survivor.client.good(segments=wire_segments([("a", (0, 1)), ("b", (5,))]))
    assert survivor.client.observe(with_segments()).result.outcome == ingest_pb2.OUTCOME_SCORED
    assert survivor.client.observe(of_requests(8, 8)).result.outcome == ingest_pb2.OUTCOME_SCORED
