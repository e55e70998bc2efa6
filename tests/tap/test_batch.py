"""Step batches on their way out: inline, in a slot, and saved from a slot. Every claim holds for all three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.batch import ENVELOPE_BYTES, MESSAGE_ROWS, MESSAGE_SEGMENTS, BatchMessage, inlined, parts
from sidecar.tap.step import CapturedStep, RequestInfo, Sample, StepSegment, wire_bytes
from sidecar.tap.tensors.states import TorchStates
from sidecar.types import ElementType, Phase, TapPoint, UnseenReason
from tests.tap.receiver import decode, lift, segments_of
from tests.tap.samples import NumpyStates, captured, segment, states

Form: TypeAlias = Callable[[BatchMessage], ingest_pb2.StepBatch]


def inline(message: BatchMessage) -> ingest_pb2.StepBatch:
    return ingest_pb2.StreamRequest.FromString(message.inline()).step_batch


def _written(message: BatchMessage, size: int = 1 << 18) -> tuple[memoryview, memoryview]:
    """Message and slot; the slot is full of old bytes before."""
    slot = memoryview(bytearray(b"\xaa" * size))
    length, used = message.write(slot)
    assert length <= used <= size
    return slot[:length], slot[:used]


def in_slot(message: BatchMessage) -> ingest_pb2.StepBatch:
    said, slot = _written(message)
    batch = ingest_pb2.StreamRequest.FromString(bytes(said)).step_batch
    for tensor in batch.tensors:
        lift(tensor, slot)
        if tensor.HasField("sample"):
            lift(tensor.sample, slot)
    return batch


def rescued(message: BatchMessage) -> ingest_pb2.StepBatch:
    return ingest_pb2.StreamRequest.FromString(inlined(*_written(message))).step_batch


@pytest.fixture(params=[inline, in_slot, rescued], ids=["inline", "in a slot", "saved from a slot"])
def form(request: pytest.FixtureRequest) -> Form:
    made: Form = request.param
    return made


def test_a_step_arrives_as_it_was(form: Form) -> None:
    values = states(5)
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    info = RequestInfo("b", parent, "chat", "acme", "de-CH", "k1", canary=True, adapter="sql")
    last = StepSegment(info, "b", [7, 9], Phase.DECODE, 4, ((UnseenReason.SAMPLING, 3),))
    step = captured((segment("a", range(3), 3), last), values, number=12)
    batch = form(BatchMessage("engine", "x-1", step))
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
    assert list(table.adapters) == ["", "sql"]
    assert (one.unseen, two.unseen) == ({}, {UnseenReason.SAMPLING: 3})
    np.testing.assert_array_equal(decode(batch.tensors[0]), values.rows)


@pytest.mark.parametrize(("rows", "bytes_", "segments"), [(3, 1 << 20, 99), (99, 4 * 8 * 4, 99), (99, 1 << 20, 1)])
def test_a_step_too_big_for_a_message_goes_as_several_that_say_the_same(
    form: Form, rows: int, bytes_: int, segments: int
) -> None:
    values = states(11)
    b = StepSegment(RequestInfo("b"), "b", range(4, 9), Phase.DECODE, 2, ((UnseenReason.SAMPLING, 3),))
    step = captured((segment("a", range(2), 2), b, segment("c", range(4))), values)
    pieces = list(parts(step, bytes_, rows, segments))
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
    joined = np.concatenate([decode(form(BatchMessage("e", "b", piece)).tensors[0]) for piece in pieces])
    np.testing.assert_array_equal(joined, values.rows)


def test_a_step_that_fits_is_not_touched() -> None:
    step = captured((segment("a", range(2)),), states(2))
    assert list(parts(step)) == [step]


def test_odd_labels_and_headers_cannot_break_their_batch(form: Form) -> None:
    info = RequestInfo("r", "x" * 100_000 + "\udcff", "a b\n", "\udcff", "e" * 500)
    step = captured((StepSegment(info, "r", range(1), Phase.DECODE, 0),), states(1))
    sent = form(BatchMessage("e", "b", step)).segments
    assert (list(sent.routes), list(sent.tenants)) == (["a_b_"], ["_"])
    assert (len(sent.languages[0]), len(sent.traceparents[0])) == (128, 256)


def _readings(rows: int, sampled: tuple[int, ...]) -> NumpyStates:
    sample = Sample(sampled, states(len(sampled), 16, seed=7)) if sampled else None
    return NumpyStates(states(rows, 5).rows, projected=True, sample=sample)


def _projected(rows: int, sampled: tuple[int, ...]) -> CapturedStep:
    return replace(captured((segment("a", range(rows)),), _readings(rows, sampled)), plan_generation=3)


def test_readings_arrive_with_their_generation_and_their_sample(form: Form) -> None:
    values = _readings(6, (1, 4))
    step = replace(captured((segment("a", range(6)),), values), plan_generation=3)
    batch = form(BatchMessage("e", "b", step))
    (tensor,) = batch.tensors
    assert (batch.plan_generation, tensor.WhichOneof("payload"), tensor.columns) == (3, "projected", 5)
    np.testing.assert_array_equal(np.frombuffer(tensor.projected, "<f4").reshape(6, 5), values.rows)
    assert values.sample is not None
    sample = tensor.sample
    assert (list(sample.rows), sample.columns, sample.dtype) == ([1, 4], 16, ingest_pb2.ELEMENT_TYPE_F32)
    np.testing.assert_array_equal(np.frombuffer(sample.raw, "<f4").reshape(2, 16), states(2, 16, seed=7).rows)


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=4), st.integers(1, 12))
def test_cutting_a_step_keeps_every_sampled_row_at_its_reading(rows: int, chosen: set[int], limit: int) -> None:
    sampled = tuple(sorted(row for row in chosen if row < rows))
    whole = _projected(rows, sampled)
    start, found = 0, []
    for piece in parts(whole, max_rows=limit):
        assert (piece.plan_generation, piece.nbytes) == (3, sum(wire_bytes(one) for _, one in piece.tensors))
        ((_, cut),) = piece.tensors
        if cut.sample is not None:
            assert cut.sample.states.shape[0] == len(cut.sample.rows) > 0
            found += [start + row for row in cut.sample.rows]
        start += piece.tokens
    assert (tuple(found), start) == (sampled, rows)


@pytest.mark.parametrize(
    ("dtype", "sent"),
    [
        (torch.float32, ElementType.F32),
        (torch.float16, ElementType.F16),
        (torch.bfloat16, ElementType.BF16),
        (torch.float64, ElementType.F32),
    ],
)
def test_torch_rows_arrive_in_a_type_that_the_wire_has(form: Form, dtype: torch.dtype, sent: ElementType) -> None:
    rows = torch.linspace(-3, 3, 7 * 24, dtype=torch.float64).reshape(7, 24).to(dtype)[:, :16]  # strided
    values = TorchStates(rows)
    assert (values.dtype, wire_bytes(values)) == (sent, 7 * 16 * sent.storage.itemsize)
    step = CapturedStep(1, 1, (segment("a", range(7)),), ((TapPoint(2), values),), 7)
    (tensor,) = form(BatchMessage("e", "b", step)).tensors
    np.testing.assert_array_equal(decode(tensor), rows.float().numpy())


def test_the_largest_envelope_fits_beside_the_tensors() -> None:
    """What a slot keeps free is enough for as many segments, ids, headers and labels as a message may have."""
    long = "x" * 300
    infos = [
        RequestInfo(f"{i:04}", long, long, long, long, long, canary=True, adapter=long) for i in range(MESSAGE_SEGMENTS)
    ]
    per = MESSAGE_ROWS // MESSAGE_SEGMENTS
    unseen = tuple((reason, 1 << 40) for reason in UnseenReason)
    segments = tuple(
        StepSegment(info, f"{i:0256}", [2**32 - 1 - k for k in range(per, 0, -1)], Phase.DECODE, 2**31, unseen)
        for i, info in enumerate(infos)
    )
    step = captured(segments, states(MESSAGE_ROWS, 1))
    (whole,) = parts(step)
    length, _ = BatchMessage("e" * 128, "b" * 64, whole).write(memoryview(bytearray(4 << 20)))
    assert length < ENVELOPE_BYTES * 0.9


def test_a_message_larger_than_its_slot_is_not_written() -> None:
    slot = bytearray(512)
    with pytest.raises(ValueError, match="larger than its slot"):
        BatchMessage("e", "b", captured((segment("a", range(9)),), states(9, 64))).write(memoryview(slot))
    assert slot == bytearray(512)


def test_a_slot_that_was_scribbled_over_is_not_taken_for_a_message() -> None:
    with pytest.raises(DecodeError):
        inlined(memoryview(b"\xff\xff\xff"), memoryview(b""))
