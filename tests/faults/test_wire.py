"""Bytes that are no message, or too much of one."""

from __future__ import annotations

import random

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.builders import wire_batch
from tests.faults.survivor import encoded, standing

_GROUP = 15  # a field number that no message here knows
_NOISE = random.Random(7)


def nested(levels: int, *, closed: bool = True) -> bytes:
    """Groups within groups: the only nesting that a parser follows in a field that it does not know."""
    ends = bytes([_GROUP << 3 | 4]) * levels if closed else b""
    return bytes([_GROUP << 3 | 3]) * levels + ends


MALFORMED = {
    "random bytes": b"\x06" + _NOISE.randbytes(999),  # wire type 6 does not exist
    "varint without an end": b"\x0a" + b"\xff" * 11,
    "varint cut": b"\x0a\x80",
    "field cut in the middle": encoded(wire_batch())[:-1],
    "field longer than the message": b"\x0a\x7f\x00",
    "length of 2^63": b"\x0a" + b"\x80" * 8 + b"\x40",
    "field number 0": b"\x02\x00",
    "invalid UTF-8 in an id": encoded(wire_batch(batch_id="marker")).replace(b"marker", b"mark\xff\xfe"),
    "invalid UTF-8 in a label": encoded(wire_batch(finished_request_ids=["marker"])).replace(b"marker", b"mark\xc3("),
    "100 nested levels without an end": nested(100, closed=False),
    "101 nested levels": nested(101),
    "100,000 nested levels": nested(100_000),
    "an end without a start": bytes([_GROUP << 3 | 4]),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_bytes_that_are_no_message_are_refused_as_malformed(survivor, raw):
    survivor.refuses(raw, "malformed", "$")


def test_a_batch_cut_anywhere_is_refused_or_whole_and_never_more_than_that(survivor):
    whole = encoded(wire_batch())
    before = survivor.client.series()
    cuts = range(1, len(whole), 5)
    for cut in cuts:
        answer = survivor.client.observe(whole[:cut])
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
        assert answer.field
    assert survivor.client.moved(before)["step_batches_received"] == len(cuts)
    assert standing(survivor.client.series()) == standing(before)
    survivor.scores()


def without(*fields: str) -> ingest_pb2.StepBatch:
    batch = wire_batch()
    for field in fields:
        batch.ClearField(field)
    return batch


EMPTY = {
    "empty message": (b"", "missing", "step_batch"),
    "empty batch": (ingest_pb2.StepBatch(), "missing", "step_batch.batch_id"),
    "no engine": (without("engine_id", "segments"), "missing", "step_batch.engine_id"),
    "no time": (without("taken_ns", "segments"), "bad_timestamp", "step_batch.taken_ns"),
    "no segments": (without("segments", "tensors"), "missing", "step_batch.segments"),
    "empty segments": (wire_batch(segments=ingest_pb2.Segments()), "missing", "step_batch.segments.request_ids"),
    "empty tensor": (wire_batch(tensors=[ingest_pb2.TapTensor()]), "bad_enum", "step_batch.tensors[0].tap_point.site"),
    "100 nested levels and no batch": (nested(100), "missing", "step_batch"),
}


@pytest.mark.parametrize(("request_", "reason", "field"), EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_message_is_refused_with_its_first_missing_field(survivor, request_, reason, field):
    survivor.refuses(request_, reason, field)


def test_small_unknown_fields_are_ignored(survivor):
    unknown = b"\x9a\x3e\x03new" + b"\xa0\x3e\x2a"  # fields 995 and 996
    before = survivor.client.series()
    answer = survivor.client.observe(encoded(wire_batch()) + unknown)
    assert answer.result.outcome == ingest_pb2.OUTCOME_SCORED
    survivor.stream.send(encoded(wire_batch()) + unknown)
    assert survivor.stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    moved = {"step_batches_received": 2, "step_batches_scored": 2, "rows_received": 6, "rows_scored": 6}
    assert survivor.client.moved(before) == moved


def test_a_message_over_the_limit_is_refused_by_grpc_and_leaves_the_ledger_alone(client):
    before = client.series()
    answer = client.observe(b"\x00" * (2 << 20))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.moved(before) == {}
    assert standing(client.series()) == standing(before)
    client.good()


def test_a_message_over_the_limit_ends_its_stream_and_what_came_before_stays_scored(client, lines):
    stream = client.stream()
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    before = client.series()
    stream.send(b"\x00" * (2 << 20))
    with pytest.raises(grpc.RpcError) as ended:
        stream.next_result()
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.moved(before) == {}
    again = client.stream()
    again.send_batch(wire_batch())
    assert again.next_result().outcome == ingest_pb2.OUTCOME_SCORED
    again.cancel()
    assert not [line for line in lines if "internal_error" in line]
