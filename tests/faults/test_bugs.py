"""Our own bugs: the caller learns an id, the log learns the rest, and the next batch scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.config import Config
from sidecar.errors import DropReason
from sidecar.ingest.decode import Decoder
from sidecar.outcome import Arrival, Result
from sidecar.pipeline import Pipeline
from sidecar.service import Sidecar
from sidecar.types import StepBatch
from sidecar.worker.build import Parts
from tests.builders import wire_batch
from tests.faults.survivor import standing
from tests.service.client import Client

SECRET = "/etc/secret not found"
SCORED, DROPPED = ingest_pb2.OUTCOME_SCORED, ingest_pb2.OUTCOME_DROPPED
BUGGY_STEP, BUGGY_ACCOUNT = 666, 667  # values of StepBatch.step that meet a bug


class BuggyPipeline(Pipeline):
    """Sound but for two steps: one fails while it is scored, one after it was answered."""

    fail_next_settle = False

    def _score(self, batch: StepBatch, arrival: Arrival) -> Result:
        if batch.step == BUGGY_STEP:
            raise FileNotFoundError(SECRET)
        self.fail_next_settle = batch.step == BUGGY_ACCOUNT
        return super()._score(batch, arrival)

    def settle(self) -> None:
        if self.fail_next_settle:
            self.fail_next_settle = False
            raise FileNotFoundError(SECRET)
        super().settle()


class BuggyDecoder(Decoder):
    """Sound but for one step."""

    def step_batch(self, wire: ingest_pb2.StepBatch, slot: memoryview | None = None) -> StepBatch:
        if wire.step == BUGGY_STEP:
            raise FileNotFoundError(SECRET)
        return super().step_batch(wire, slot)


BUGGY_PIPELINE = Parts(pipeline=BuggyPipeline)
PLACES = {
    "pipeline": (BUGGY_PIPELINE, 3),
    "decoder": (Parts(decoder=lambda config, clock: BuggyDecoder(config.limits, clock)), 0),
}


def made_of(parts: Parts, lines: list[str]) -> Callable[[Config], Sidecar]:
    return lambda config: Sidecar(config, write_log=lines.append, parts=parts)


@pytest.fixture(params=PLACES.values(), ids=PLACES.keys())
def buggy(
    request: pytest.FixtureRequest, serve: Callable[..., Sidecar], lines: list[str]
) -> Iterator[tuple[Client, int]]:
    """A client of a sidecar with a bug, and how many rows of the buggy batch are known when it strikes."""
    parts, rows = request.param
    with Client(serve(made_of(parts, lines))) as client:
        client.register()
        yield client, rows


def ledger_of(rows: int) -> dict[str, float]:
    moved = {"step_batches_received": 1.0, "step_batches_dropped{internal}": 1.0}
    return moved | ({"rows_received": float(rows), "rows_dropped{internal}": float(rows)} if rows else {})


def internal_errors(lines: list[str]) -> list[dict[str, object]]:
    return [event for event in map(json.loads, lines) if event["event"] == "internal_error"]


def test_a_bug_is_answered_with_a_fixed_text_and_an_id_and_only_the_log_knows_more(buggy, lines):
    client, rows = buggy
    before = client.series()
    answer = client.observe(wire_batch(step=BUGGY_STEP))
    assert answer.code is grpc.StatusCode.INTERNAL
    told = re.fullmatch(r"internal error ([0-9a-f]{16})", answer.text)
    assert told is not None
    assert answer.field == ""
    (logged,) = internal_errors(lines)
    assert (logged["id"], logged["type"], logged["text"]) == (told[1], "FileNotFoundError", SECRET)
    assert str(logged["at"]).startswith("test_bugs:")
    assert client.moved(before) == ledger_of(rows)
    assert standing(client.series()) == standing(before)
    client.good()


def test_each_bug_has_an_id_of_its_own(buggy):
    client, _ = buggy
    texts = {client.observe(wire_batch(step=BUGGY_STEP)).text for _ in range(5)}
    assert len(texts) == 5


def test_on_a_stream_a_bug_costs_its_batch_and_the_stream_goes_on(buggy, lines):
    """Ending the stream would cost every batch that is under way, and turn coverage blind, for a bug in one of them."""
    client, rows = buggy
    stream = client.stream()
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == SCORED
    before = client.series()
    stream.send_batch(wire_batch(step=BUGGY_STEP))
    answer = stream.next_result()
    assert (answer.outcome, answer.reason, answer.field) == (DROPPED, DropReason.INTERNAL, "")
    assert SECRET.encode() not in answer.SerializeToString()
    assert client.moved(before) == ledger_of(rows)
    assert standing(client.series()) == standing(before)
    assert [one["text"] for one in internal_errors(lines)] == [SECRET]
    stream.send_batch(wire_batch())
    assert stream.next_result().outcome == SCORED
    stream.cancel()


def test_a_flood_of_bugs_is_a_few_lines(buggy, lines):
    client, _ = buggy
    for _ in range(40):
        client.observe(wire_batch(step=BUGGY_STEP))
    assert len(internal_errors(lines)) < 40
    assert float(client.series()["stethoscope_log_lines_suppressed_total"]) > 0
    client.good()


def test_a_bug_after_the_answer_is_logged_and_the_answer_stands(serve, lines):
    with Client(serve(made_of(BUGGY_PIPELINE, lines))) as client:
        client.register()
        client.good(step=BUGGY_ACCOUNT)
        client.status()  # behind whatever came after the answer
        assert [one["text"] for one in internal_errors(lines)] == [SECRET]
        stream = client.stream()
        for step in (BUGGY_ACCOUNT, 1):
            stream.send_batch(wire_batch(step=step))
            assert stream.next_result().outcome == SCORED
        stream.cancel()
        status = client.status().step_batches
        assert (status.received, status.scored, status.in_flight) == (3, 3, 0)
        assert {one.name: one.readings for one in client.status().signals}["first"] == 9


def test_a_bug_in_the_registration_tells_no_more_than_an_id(serve, lines):
    class BuggyControl(Pipeline):
        broken = True

        def admit(self, *args: Any) -> None:
            if self.broken:
                raise FileNotFoundError(SECRET)
            super().admit(*args)

    with Client(serve(made_of(Parts(pipeline=BuggyControl), lines))) as client:
        with pytest.raises(grpc.RpcError) as refused:
            client.register()
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert SECRET not in str(refused.value)
        BuggyControl.broken = False
        client.register()
        client.good()
    assert SECRET in [one["text"] for one in internal_errors(lines)]


def test_a_log_that_nobody_reads_any_more_costs_no_batch(serve, artifacts, home):
    """A closed pipe behind stderr: the lines are lost and counted, the answers are what they were."""

    def broken_pipe(_: str) -> None:
        raise BrokenPipeError

    from tests.service_fixtures import settings

    sidecar = serve(lambda _: Sidecar(settings(home, artifacts), write_log=broken_pipe))
    with Client(sidecar) as client:
        client.register()
        assert client.observe(b"\xff").code is grpc.StatusCode.INVALID_ARGUMENT
        client.good()
        assert (
            float(client.series()["stethoscope_log_lines_suppressed_total"]) == 4
        )  # started, kernels, registered, rejected
