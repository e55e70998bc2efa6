from __future__ import annotations

import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap import wire
from sidecar.tap.step import RequestInfo, StepSegment, wire_id
from sidecar.types import Phase, SamplingPolicy, UnseenReason
from tests.tap.receiver import control, decode, segments_of
from tests.tap.samples import captured, segment, states


def _decoded(raw: bytes) -> ingest_pb2.StepBatch:
    return ingest_pb2.StreamRequest.FromString(raw).step_batch


def test_a_step_arrives_as_it_was() -> None:
    values = states(5)
    info = RequestInfo("b", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "chat", "acme", "de-CH", "k1", canary=True)
    last = StepSegment(info, "b", [7, 9], Phase.DECODE, 4, ((UnseenReason.SAMPLING, 3),))
    step = captured((segment("a", range(3), 3), last), values, number=12)
    batch = _decoded(wire.batch_message("engine", "x-1", step))
    assert (batch.batch_id, batch.engine_id, batch.step, batch.taken_ns) == ("x-1", "engine", 12, step.taken_ns)
    one, two = segments_of(batch)
    assert (one.request_id, list(one.positions), one.phase, one.prompt_tokens) == ("a", [0, 1, 2], Phase.PREFILL, 3)
    assert (two.request_id, list(two.positions), two.phase, two.traceparent) == ("b", [7, 9], 2, info.traceparent)
    table = batch.segments
    assert (list(table.routes), list(table.tenants), list(table.canaries)) == (
        ["", "chat"],
        ["", "acme"],
        [False, True],
    )
    assert (list(table.languages), list(table.session_id_hashes)) == (["", "de-CH"], ["", "k1"])
    assert (one.unseen, two.unseen) == ({}, {UnseenReason.SAMPLING: 3})
    np.testing.assert_array_equal(decode(batch.tensors[0]), values.rows)


@pytest.mark.parametrize(("rows", "bytes_", "segments"), [(3, 1 << 20, 99), (99, 4 * 8 * 4, 99), (99, 1 << 20, 1)])
def test_a_step_too_big_for_a_message_goes_as_several_that_say_the_same(rows: int, bytes_: int, segments: int) -> None:
    values = states(11)
    b = StepSegment(RequestInfo("b"), "b", range(4, 9), Phase.DECODE, 2, ((UnseenReason.SAMPLING, 3),))
    step = captured((segment("a", range(2), 2), b, segment("c", range(4))), values)
    pieces = list(wire.parts(step, bytes_, rows, segments))
    assert len(pieces) > 1
    said: list[tuple[str, int]] = []
    unseen = 0
    for piece in pieces:
        assert piece.tokens == sum(len(one.positions) for one in piece.segments) <= rows
        assert piece.nbytes <= bytes_
        assert len(piece.segments) <= segments
        said += [(one.wire_id, position) for one in piece.segments for position in one.positions]
        unseen += sum(tokens for one in piece.segments for _, tokens in one.unseen)
    assert said == [(one.wire_id, position) for one in step.segments for position in one.positions]
    assert unseen == 3
    joined = np.concatenate([decode(_decoded(wire.batch_message("e", "b", piece)).tensors[0]) for piece in pieces])
    np.testing.assert_array_equal(joined, values.rows)


def test_a_step_that_fits_is_not_touched() -> None:
    step = captured((segment("a", range(2)),), states(2))
    assert list(wire.parts(step)) == [step]


@pytest.mark.parametrize("name", ["", "two words", "a\nb", "\x1b[31m", "x" * 257, "\udcff", '{"level":'])
def test_an_id_that_the_sidecar_would_refuse_becomes_a_hash(name: str) -> None:
    assert wire_id(name).startswith("hashed:")
    assert wire_id(wire_id(name)) == wire_id(name)
    assert wire_id(name) != wire_id(name + "x")


def test_odd_labels_and_headers_cannot_break_their_batch() -> None:
    info = RequestInfo("r", "x" * 100_000 + "\udcff", "a b\n", "\udcff", "e" * 500)
    raw = wire.batch_message("e", "b", captured((StepSegment(info, "r", range(1), Phase.DECODE, 0),), states(1)))
    sent = _decoded(raw).segments
    assert (list(sent.routes), list(sent.tenants)) == (["a_b_"], ["_"])
    assert (len(sent.languages[0]), len(sent.traceparents[0])) == (128, 256)


def test_settings_are_read_as_sent() -> None:
    told = wire.settings(control((3, 1), fraction=0.25, stride=4, first=2, last=8, generation=7))
    assert told.policy == SamplingPolicy(0.25, 4, 2, 8)
    assert (told.plan_generation, [point.name for point in told.tap_points]) == (
        7,
        ["blocks.3.resid_post", "blocks.1.resid_post"],
    )


@pytest.mark.parametrize(("sent", "read"), [(float("nan"), 0.0), (-1.0, 0.0), (7.0, 1.0)])
def test_a_share_that_is_none_cannot_stop_the_tap(sent: float, read: float) -> None:
    assert wire.settings(control(fraction=sent, stride=0)).policy == SamplingPolicy(read, 1)
