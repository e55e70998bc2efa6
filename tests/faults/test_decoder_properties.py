"""Whatever the bytes: a batch or a refusal, never anything else, and never more memory than the bytes account for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.errors import Rejected
from sidecar.ingest import decode
from sidecar.ingest.checks import parse
from sidecar.ingest.decode import Decoder
from sidecar.types import StepBatch
from tests.builders import LAYERS, WIDTH, wire_batch, wire_model, write_control, write_probe
from tests.faults.survivor import encoded
from tests.faults.values import ELEMENTS, as_tensor, bits
from tests.hot import Hot

MANY = settings(max_examples=400, deadline=None)
CLOCK = ManualClock()
LIMITS = Config().limits
DECODER = Decoder(LIMITS, CLOCK)
ALPHABET = "abcXYZ019._:/@#+=~-"
ids = st.text(ALPHABET, min_size=1, max_size=20)


@st.composite
def batches(draw: st.DrawFn) -> ingest_pb2.StepBatch:
    """A sound batch of any form that the contract allows."""
    names = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    requests = [(name, sorted(draw(st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=4)))) for name in names]
    total = sum(len(positions) for _, positions in requests)
    rows = np.random.default_rng(draw(st.integers(0, 9))).normal(size=(total, WIDTH))
    taps = draw(st.lists(st.integers(0, LAYERS - 1), max_size=3, unique=True))
    tensors = [ingest_pb2.TapTensor.FromString(_tensor(draw, rows, layer)) for layer in taps]
    finished = draw(st.lists(ids, max_size=3))
    number = draw(st.integers(0, 10**12 - 1))  # the builder's own count would make the bytes depend on earlier tests
    fixed = {"batch_id": f"b{number:012}", "step": number, "taken_ns": CLOCK.unix_ns()}
    batch = wire_batch(
        rows.astype(np.float32), requests=requests, tensors=tensors, finished_request_ids=finished, **fixed
    )
    for name in draw(st.sets(st.sampled_from(["tenants", "routes", "languages", "session_id_hashes", "adapters"]))):
        getattr(batch.segments, name).extend(draw(ids) for _ in names)
    if draw(st.booleans()):
        batch.segments.traceparents.extend(draw(st.text(max_size=60)) for _ in names)
    if draw(st.booleans()):
        batch.segments.unseen.add(segment=0, reason=ingest_pb2.UNSEEN_REASON_SAMPLING, tokens=draw(st.integers(0, 99)))
    return batch


def _tensor(draw: st.DrawFn, rows: np.ndarray, layer: int) -> bytes:
    dtype = draw(st.sampled_from(sorted(ELEMENTS)))
    tensor = as_tensor(bits(rows, dtype), dtype)
    tensor.tap_point.layer = layer
    return tensor.SerializeToString()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The bytes of a sound batch after a few accidents: bits flipped, cut, doubled, or spliced with another batch."""
    raw = bytearray(encoded(draw(batches())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "splice", "insert", "remove"]))
        if kind == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at:]
        elif kind == "double":
            raw += raw[at:]
        elif kind == "splice":
            other = encoded(draw(batches()))
            raw[at:] = other[draw(st.integers(0, len(other))) :]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(max_size=12))
        else:
            del raw[at : at + draw(st.integers(1, 12))]
    return bytes(raw)


def decoded(raw: bytes) -> StepBatch | Rejected:
    """As the service does it. Anything but Rejected comes through and fails the test."""
    try:
        request = parse(ingest_pb2.ObserveRequest, raw)
        if request.HasField("traffic"):
            decode.traffic_report(request.traffic)
        return DECODER.step_batch(request.step_batch)
    except Rejected as rejected:
        return rejected


def is_sound(batch: StepBatch) -> bool:
    """What every later stage relies on."""
    segments = batch.segments
    return (
        int(segments.rows.sum()) == len(segments.positions) == segments.token_count
        and len(segments.starts) == len(segments.phases) == len(segments.request_ids)
        and all(tensor.values.shape[0] == segments.token_count for tensor in batch.tensors)
    )


@MANY
@given(st.binary(max_size=400))
def test_any_bytes_are_a_batch_or_refused(raw):
    made = decoded(raw)
    assert isinstance(made, Rejected) or is_sound(made)


@settings(max_examples=150, deadline=None)
@given(batches())
def test_any_sound_batch_is_decoded_to_what_it_says(batch):
    made = decoded(encoded(batch))
    assert isinstance(made, StepBatch)
    assert is_sound(made)
    assert made.segments.request_ids == tuple(batch.segments.request_ids)
    assert made.segments.positions.tolist() == list(batch.segments.positions)
    assert [tensor.values.tobytes() for tensor in made.tensors] == [tensor.raw for tensor in batch.tensors]
    assert made.finished == tuple(batch.finished_request_ids)


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    from probes.registry import load_folder

    root = tmp_path_factory.mktemp("artifacts")
    write_probe(root, "first", column=0)
    write_control(root)
    made = Hot(CLOCK, artifacts=load_folder(root, limit=9))
    made.register()
    return made


@MANY
@given(raw=mutated())
def test_any_accident_to_a_batch_has_one_outcome_all_the_way_through_and_the_ledger_balances(hot, raw):
    before = hot.snapshot().step_batches
    made = decoded(raw)
    if isinstance(made, Rejected):
        hot.pipeline.arrive()
        hot.pipeline.reject(made)
    else:
        hot.submit(made)
    after = hot.snapshot()
    assert after.step_batches.received == before.received + 1
    assert after.step_batches.balanced
    assert after.rows.balanced
    assert (after.step_batches.in_flight, after.rows.in_flight) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=4000)))
def test_decoding_takes_memory_in_proportion_to_the_bytes(raw):
    decoded(raw)  # what the first use of anything costs is not the message's doing
    tracemalloc.start()
    try:
        decoded(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(raw) + (64 << 10)


@MANY
@given(st.binary(max_size=200))
def test_any_bytes_are_a_control_message_or_refused(raw):
    for message, take in (
        (control_pb2.RegisterRequest, lambda m: (decode.model_identity(m.model), decode.traffic_report(m.traffic))),
        (ingest_pb2.StreamRequest, lambda m: (decode.traffic_report(m.traffic), DECODER.finished(m.finished))),
    ):
        try:
            take(parse(message, raw))
        except Rejected as rejected:
            assert rejected.field  # noqa: PT017 - either way is right, nothing else is


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 7)), min_size=1, max_size=3))
def test_any_flipped_bits_in_a_registration_are_a_model_or_refused(flips):
    raw = bytearray(control_pb2.RegisterRequest(engine_id="engine-0", model=wire_model()).SerializeToString())
    for at, bit in flips:
        raw[at % len(raw)] ^= 1 << bit
    try:
        request = parse(control_pb2.RegisterRequest, bytes(raw))
        decode.engine_id(request.engine_id, "engine_id")
        assert 0 < decode.model_identity(request.model).layers <= 10_000
    except Rejected as rejected:
        assert rejected.field  # noqa: PT017 - as above
