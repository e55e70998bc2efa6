"""What is compared does the same work."""

from __future__ import annotations

import numpy as np
import pytest

from bench.artifacts import write_artifacts
from bench.exact import flags
from bench.peers import GrpcPeer, RingPeer
from bench.serving import child, serving
from bench.steps import Shape, Steps
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.config import Config
from sidecar.ingest.decode import Decoder

SMALL = Shape(taps=2, rows=8, columns=256)


@pytest.mark.parametrize("shape", [SMALL, Shape(taps=2, rows=8, columns=9, projected=True)])
def test_a_step_says_the_same_by_the_ring_and_by_grpc(shape):
    decoder = Decoder(Config().limits, SystemClock())
    message = Steps(shape).take(1)[0]
    slot = memoryview(bytearray(shape.nbytes + (1 << 20)))
    length, used = message.write(slot)
    placed = ingest_pb2.StreamRequest.FromString(bytes(slot[:length])).step_batch
    inline = ingest_pb2.StreamRequest.FromString(message.inline()).step_batch
    assert inline.batch_id == placed.batch_id
    ours, theirs = decoder.step_batch(placed, slot[:used]), decoder.step_batch(inline)
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert one.tap_point == other.tap_point
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.process
def test_the_naive_service_gives_the_verdicts_of_the_sidecar(tmp_path):
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    write_artifacts(artifacts, SMALL.columns, SMALL.taps, directions=8, threshold=0.8)
    sent = Steps(SMALL, variety=16).take(16)
    address = f"unix:{tmp_path}/naive.sock"
    with (
        serving(artifacts) as served,
        child("-m", "bench.naive", address, str(artifacts)),
        RingPeer(served.address, SMALL.columns) as ring,
        GrpcPeer(address) as naive,
    ):
        ours = [flags(ring.step(ring.ready(message))) for message in sent]
        theirs = [flags(naive.step(naive.ready(message))) for message in sent]
    assert any(ours)
    assert ours == theirs
