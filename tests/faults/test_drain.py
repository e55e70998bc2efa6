"""What is under way when the stop comes is finished; what comes after it is turned away at the door."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.outcome import Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.service import Sidecar
from sidecar.types import StepBatch
from sidecar.worker.build import Parts
from tests.builders import wire_batch
from tests.service.client import Answer, Client

SLOW_STEP = 777
DEADLINE_S = 10.0


class SlowPipeline(Pipeline):
    """Takes its time over one step: until it is told to go on."""

    entered = threading.Event()
    go_on = threading.Event()

    def _score(self, batch: StepBatch, arrival: Arrival) -> Result:
        if batch.step == SLOW_STEP:
            self.entered.set()
            assert self.go_on.wait(DEADLINE_S)
        return super()._score(batch, arrival)


def by_observe(client: Client, answers: list[Answer]) -> None:
    answers.append(client.observe(wire_batch(step=SLOW_STEP)))


def by_stream(client: Client, answers: list[Answer]) -> None:
    stream = client.stream()
    stream.send_batch(wire_batch(step=SLOW_STEP))
    answers.append(Answer(grpc.StatusCode.OK, result=stream.next_result()))
    stream.close()


@pytest.mark.parametrize("send", [by_observe, by_stream])
def test_a_batch_under_way_at_the_stop_is_scored_and_answered(
    serve: Callable[..., Sidecar], lines: list[str], send: Callable[[Client, list[Answer]], None]
) -> None:
    SlowPipeline.entered.clear()
    SlowPipeline.go_on.clear()
    slow = Parts(pipeline=SlowPipeline)
    sidecar = serve(lambda config: Sidecar(config, write_log=lines.append, parts=slow))
    answers = list[Answer]()
    with Client(sidecar) as client:
        client.register()
        sender = threading.Thread(target=send, args=(client, answers))
        sender.start()
        assert SlowPipeline.entered.wait(DEADLINE_S)
        stopper = threading.Thread(target=sidecar.stop)
        stopper.start()
        wait_until_refused(sidecar)
        assert not answers
        SlowPipeline.go_on.set()
        sender.join(DEADLINE_S)
        stopper.join(DEADLINE_S)
    (answer,) = answers
    assert answer.result is not None
    assert answer.result.outcome == ingest_pb2.OUTCOME_SCORED
    stopped = json.loads(lines[-1])
    assert (stopped["event"], stopped["received"], stopped["scored"], stopped["in_flight"]) == ("stopped", 1, 1, 0)


def wait_until_refused(sidecar: Sidecar) -> None:
    """A new connection gets no answer any more, not even to a call that needs nothing of the pipeline."""
    ends_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends_s:
        with Client(sidecar) as newcomer:
            try:
                newcomer.call("ControlService/FetchPlan", b"", timeout_s=1.0)
            except grpc.RpcError as refused:
                if refused.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    return
    raise AssertionError("calls were still taken")
