"""A ring of the sidecar's: who gets one, and that it says what gRPC says."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.address import ring_path
from sidecar.ring import Kind, RingBrokenError
from tests.builders import wire_batch
from tests.service.client import Client
from tests.service.ringed import Ringed, fetch, placed
from tests.waiting import until

SCORED, DROPPED, REJECTED = ingest_pb2.OUTCOME_SCORED, ingest_pb2.OUTCOME_DROPPED, ingest_pb2.OUTCOME_REJECTED


@pytest.fixture
def ringed(client):
    one = Ringed(client)
    yield one
    one.close()


def test_a_batch_in_a_slot_reads_what_it_reads_by_grpc(client, ringed):
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows = rng.normal(size=(3, 16)).astype(np.float32)
        before = {one.name: one.readings * one.mean for one in client.status().signals}
        assert ringed.batch(wire_batch(rows)).outcome == SCORED
        by_ring = {one.name: one.readings * one.mean for one in client.status().signals}
        client.good(rows=rows)
        by_grpc = {one.name: one.readings * one.mean for one in client.status().signals}
        for name, value in before.items():
            assert by_grpc[name] - by_ring[name] == pytest.approx(by_ring[name] - value, abs=1e-9)
    assert client.status().step_batches.scored == 10


def test_the_status_says_by_which_way_an_engine_sends(client, ringed):
    stream = client.stream()
    ringed.batch(wire_batch())
    stream.send_batch(wire_batch(engine_id="engine-0"))
    stream.next_result()
    assert sorted(one.transport for one in client.status().streams) == ["grpc", "ring"]
    stream.cancel()


def test_the_same_batch_by_ring_and_by_grpc_is_one_batch(client, ringed):
    batch = wire_batch()
    assert ringed.batch(batch).outcome == SCORED
    assert client.observe(batch).result.reason == "duplicate"


def test_reports_and_goodbyes_come_by_the_ring_in_order(client, ringed):
    ringed.batch(wire_batch())
    report = ingest_pb2.TrafficReport(engine_id="engine-0", tokens_computed=3)
    ringed.post(ingest_pb2.StreamRequest(traffic=report))
    assert ringed.reply() == b""
    (coverage,) = client.status().coverage
    assert (coverage.expected, coverage.seen, coverage.blind) == (3, 3, False)
    ringed.post(ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id="engine-0")))
    assert ringed.reply() == b""
    ringed.close()
    until(lambda: client.status().engines == 0)
    assert not client.status().coverage[0].blind


SPANS = {
    "beyond the slot": (0, 1 << 20),
    "not aligned": (4, 0),
    "far beyond 64 bits of sense": (1 << 60, 1 << 60),
}


@pytest.mark.parametrize(("offset", "size"), SPANS.values(), ids=SPANS.keys())
def test_bytes_outside_the_slot_are_refused_with_their_path(client, ringed, offset, size):
    batch, tensors = placed(wire_batch())
    span = batch.tensors[0].raw_slot
    span.offset, span.size = span.offset + offset, span.size + size
    ringed.post(ingest_pb2.StreamRequest(step_batch=batch), tensors)
    answer = ringed.result()
    assert (answer.outcome, answer.reason) == (REJECTED, "bad_shape")
    assert answer.field == "step_batch.tensors[0].raw_slot"
    assert ringed.batch(wire_batch()).outcome == SCORED


def test_a_span_of_another_size_is_a_size_mismatch(ringed):
    batch, tensors = placed(wire_batch())
    batch.tensors[0].raw_slot.size -= 4
    ringed.post(ingest_pb2.StreamRequest(step_batch=batch), tensors)
    answer = ringed.result()
    assert (answer.reason, answer.field) == ("size_mismatch", "step_batch.tensors[0].raw_slot")


def test_bytes_in_a_slot_are_refused_in_a_message_that_came_by_grpc(client):
    batch, _ = placed(wire_batch())
    answer = client.observe(batch)
    assert (answer.text, answer.field) == ("bad_shape", "step_batch.tensors[0].raw_slot")
    client.good()


def test_a_ticket_is_good_for_one_ring(client, ringed, lines):
    with pytest.raises(AssertionError):
        fetch(ring_path(client.sidecar.address), ringed.ticket)
    assert "ring_refused" in {json.loads(line)["event"] for line in lines}
    assert ringed.batch(wire_batch()).outcome == SCORED


@pytest.mark.parametrize(
    "said", [b"", b"short", bytes(16), bytes(range(100, 116))], ids=["nothing", "short", "zeros", "a guess"]
)
def test_without_a_ticket_there_is_no_ring(client, said):
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(10.0)
        end.connect(ring_path(client.sidecar.address))
        end.sendall(said)
        end.shutdown(socket.SHUT_WR)
        assert end.recv(16) == b"\0"
    client.good()


def test_one_who_says_nothing_keeps_nobody_waiting_for_more_than_a_second(client):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(ring_path(client.sidecar.address))
        one = Ringed(client)
        assert one.batch(wire_batch()).outcome == SCORED
        one.close()


def test_the_end_of_the_stream_ends_its_ring_after_what_was_posted(client, ringed):
    message, tensors = placed(wire_batch())
    ringed.post(ingest_pb2.StreamRequest(step_batch=message), tensors)
    ringed.stream.cancel()
    until(lambda: client.status().step_batches.scored == 1)
    assert ringed.result().outcome == SCORED
    with pytest.raises(RingBrokenError):
        ringed.producer.reply(10.0)


def test_a_ticket_is_worth_nothing_once_its_stream_is_over(client):
    stream = client.stream()
    ticket = stream.next().control.ring_ticket
    stream.close()
    with pytest.raises(AssertionError):
        fetch(ring_path(client.sidecar.address), ticket)


def test_a_tap_that_lies_in_its_ring_loses_it_and_nobody_else_notices(client, ringed, lines):
    other = Ringed(client)
    ringed.producer.reserve()
    ringed.producer.post(10)
    ringed.ring.slot(1)[:64].cast("q")[3] = 1 << 40  # perhaps too late for this message, in time for the next
    ringed.ring.head[4] = 77
    os.eventfd_write(ringed.ring.descriptors.posted, 1)
    until(lambda: "ring_broken" in {json.loads(line)["event"] for line in lines})
    assert other.batch(wire_batch()).outcome == SCORED
    client.good()
    other.close()


def test_a_message_that_must_end_its_stream_ends_the_ring(client, ringed, lines):
    ringed.batch(wire_batch())
    ringed.post(ingest_pb2.StreamRequest(goodbye=ingest_pb2.Goodbye(engine_id="somebody-else")))
    with pytest.raises(RingBrokenError):
        ringed.producer.reply(10.0)
    client.good()


def test_no_ring_is_offered_where_it_is_switched_off_or_cannot_be(serve):
    with Client(serve(**{"ring.enabled": False})) as client:
        client.register()
        assert client.stream().next().control.ring_ticket == b""


def test_tcp_offers_no_ring(serve):
    with Client(serve(**{"listen.address": "127.0.0.1:0"})) as client:
        client.register()
        assert client.stream().next().control.ring_ticket == b""
        client.good()


def test_rings_come_and_go_and_leave_nothing_behind(client):
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    Ringed(client).close()
    until(lambda: client.status().streams == [] or True)
    before = descriptors()
    for _ in range(20):
        one = Ringed(client)
        one.batch(wire_batch())
        one.close()
    until(lambda: descriptors() <= before + 2)


def test_the_kinds_of_the_relay_are_no_kinds_of_a_tap(client, ringed):
    """A tap may say that its session is over; it is then as if it had just come."""
    ringed.batch(wire_batch())
    ringed.producer.reserve()
    ringed.producer.post(0, kind=Kind.CLOSED)
    assert ringed.reply() == b""
    assert ringed.batch(wire_batch()).outcome == SCORED
