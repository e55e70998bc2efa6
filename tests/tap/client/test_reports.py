"""Registration, settings and reports: what the two sides tell each other beside the steps."""

from __future__ import annotations

import grpc

from sidecar.tap.traffic import StepTally, TrafficMeter
from sidecar.types import SamplingPolicy, UnseenReason
from tests.tap.clients import MakeClient, connected
from tests.tap.receiver import Receiver, blocks, control
from tests.tap.samples import step
from tests.waiting import until


def test_a_stream_begins_with_a_report(receiver: Receiver, make_client: MakeClient) -> None:
    connected(make_client(report_s=3600))
    receiver.wait(lambda r: r.requests)
    assert receiver.requests[0].WhichOneof("body") == "traffic"


def test_a_report_never_runs_ahead_of_the_batches_that_it_counts(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(report_s=0.002, queue_batches=10_000))
    steps = 0
    while len(receiver.reports) < 8:
        steps += 1
        tally = StepTally(tokens=3, requests=0)
        tally.miss(UnseenReason.SAMPLING, 1)
        if client.submit(step("r", 2 * steps, 2)):
            client.traffic.add(tally)
    seen = 0
    for request in receiver.requests:
        if request.HasField("step_batch"):
            seen += 2
        elif request.HasField("traffic"):
            assert request.traffic.tokens_computed - sum(u.tokens for u in request.traffic.unseen) <= seen
    assert receiver.reports[-1].tokens_computed > receiver.reports[0].tokens_computed


def test_reports_come_without_any_batch(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client(report_s=0.02))
    client.traffic.add(StepTally(7, 2, {UnseenReason.UNSUPPORTED: 7}))
    receiver.wait(lambda r: r.reports and r.reports[-1].tokens_computed == 7)
    assert (receiver.reports[-1].requests, receiver.unseen) == (2, {UnseenReason.UNSUPPORTED: 7})


def test_registration_carries_what_the_engine_had_computed_before(receiver: Receiver, make_client: MakeClient) -> None:
    traffic = TrafficMeter()
    traffic.add(StepTally(100, 4))
    connected(make_client(traffic))
    assert receiver.registrations[-1].traffic.tokens_computed == 100


def test_a_refused_registration_is_tried_again(receiver: Receiver, make_client: MakeClient) -> None:
    receiver.refuse_registration = grpc.StatusCode.FAILED_PRECONDITION
    client = make_client()
    receiver.wait(lambda r: len(r.registrations) >= 2)
    assert not client.connected
    receiver.refuse_registration = None
    connected(client)


def test_settings_follow_the_sidecar(receiver: Receiver, make_client: MakeClient) -> None:
    client = connected(make_client())
    receiver.push(control((2, 5), fraction=0.5, stride=3, generation=9))
    until(lambda: client.settings.plan_generation == 9)
    assert client.settings.tap_points == blocks(2, 5)
    assert client.policy == SamplingPolicy(0.5, 3)
