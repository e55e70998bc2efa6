"""A stream belongs to one engine, and what is wrong on it hurts nobody else."""

from __future__ import annotations

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.builders import wire_batch
from tests.faults.survivor import standing
from tests.service.client import Client, Stream

SCORED = ingest_pb2.OUTCOME_SCORED


@pytest.fixture
def stream(client: Client) -> Stream:
    """A stream of engine-0, while engine-1 is registered too."""
    client.register(engine="engine-1")
    opened = client.stream()
    opened.send_batch(wire_batch())
    assert opened.next_result().outcome == SCORED
    return opened


def ended(stream: Stream) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        stream.next_result()
    return error.value


def test_a_batch_of_another_engine_is_refused_and_the_stream_goes_on(client, stream):
    before = client.series()
    stream.send_batch(wire_batch(engine_id="engine-1"))
    refused = stream.next_result()
    assert (refused.outcome, refused.reason) == (ingest_pb2.OUTCOME_REJECTED, "unknown_engine")
    assert refused.field == "step_batch.engine_id"
    assert client.moved(before) == {"step_batches_received": 1, "step_batches_rejected{unknown_engine}": 1}
    assert standing(client.series()) == standing(before)
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == SCORED


def test_a_refused_batch_is_named_in_its_answer_if_its_id_was_sound(client, stream):
    stream.send_batch(wire_batch(batch_id="known", taken_ns=1))
    assert stream.next_result().batch_id == "known"
    stream.send_batch(wire_batch(batch_id="not\nsound", taken_ns=1))
    assert stream.next_result().batch_id == ""
    stream.send(b"\xff")
    assert stream.next_result().batch_id == ""


def test_a_stream_that_began_before_its_engine_registered_counts_once_it_has(client):
    stream = client.stream()
    stream.send_batch(wire_batch(engine_id="late"))
    assert stream.next_result().reason == "unknown_engine"
    assert client.status().engines == 0
    client.register(engine="late")
    stream.send_batch(wire_batch(engine_id="late"))
    assert stream.next_result().outcome == SCORED
    assert client.status().engines == 1
    stream.cancel()


def test_one_engine_cannot_end_the_requests_of_another(client, stream):
    client.good(engine_id="engine-1", requests=[("theirs", (0, 1, 2))])
    before = client.series()
    theirs = ingest_pb2.RequestsFinished(engine_id="engine-1", request_ids=["theirs"])
    stream.send(ingest_pb2.StreamRequest(finished=theirs))
    assert ended(stream).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.series()["stethoscope_requests_tracked"] == before["stethoscope_requests_tracked"]
    assert client.moved(before) == {}


WRONG = {
    "traffic of another engine": {"traffic": ingest_pb2.TrafficReport(engine_id="engine-1", tokens_computed=5)},
    "traffic of nobody": {"traffic": ingest_pb2.TrafficReport(engine_id="nobody", tokens_computed=5)},
    "traffic without engine": {"traffic": ingest_pb2.TrafficReport(tokens_computed=5)},
    "goodbye of another engine": {"goodbye": ingest_pb2.Goodbye(engine_id="engine-1")},
    "finished with a bad id": {"finished": ingest_pb2.RequestsFinished(engine_id="engine-0", request_ids=["a\n"])},
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_batch_and_wrong_ends_its_stream_and_changes_nothing(client, stream, lines, body):
    before = client.series()
    stream.send(ingest_pb2.StreamRequest(**body))
    assert ended(stream).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.moved(before) == {}
    named = {name for name, value in client.series().items() if before.get(name) != value}
    assert {name.partition("{")[0] for name in named} <= {
        "stethoscope_blind",  # engine-0 has lost its stream
        "stethoscope_engines_connected",
        "stethoscope_engine_streams",
        "stethoscope_counts_age_seconds",
        "stethoscope_process_cpu_seconds_total",
        "stethoscope_process_resident_memory_bytes",
        "stethoscope_process_open_fds",
        "stethoscope_uptime_seconds",
        "stethoscope_http_requests_total",
    }
    again = client.stream()
    again.send_batch(wire_batch())
    assert again.next_result().outcome == SCORED
    again.cancel()
    assert not [line for line in lines if "internal_error" in line]


def test_a_report_of_another_engine_refuses_its_batch_before_it_is_scored(client, stream):
    """The answer and the ledger must agree: scored and refused at once would be neither."""
    before = client.series()
    report = ingest_pb2.TrafficReport(engine_id="engine-1", tokens_computed=5)
    request = ingest_pb2.ObserveRequest(step_batch=wire_batch(), traffic=report)
    answer = client.observe(request.SerializeToString())
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "traffic.engine_id")
    assert client.moved(before) == {"step_batches_received": 1, "step_batches_rejected{unknown_engine}": 1}
    assert standing(client.series()) == standing(before)
    client.good()


def test_a_client_that_vanishes_leaves_no_error_behind_and_what_arrived_is_accounted(client, lines):
    streams = [client.stream() for _ in range(6)]
    for stream in streams:
        stream.send_batch(wire_batch())
    for stream in streams[:3]:
        assert stream.next_result().outcome == SCORED
    for stream in streams:
        stream.cancel()
    client.good()
    status = client.status().step_batches
    assert (status.received, status.in_flight) == (status.scored, 0)
    assert not [line for line in lines if "internal_error" in line]
