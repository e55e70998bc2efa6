"""Trace headers from anywhere: a bad one costs the trace, never the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.pipeline import Pipeline
from sidecar.service import Sidecar
from sidecar.snapshot import EndedRequest
from sidecar.types import TraceParent
from sidecar.worker.build import Parts
from tests.builders import wire_batch
from tests.service.client import Client

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"

BAD = {
    "trace id of zeros": f"00-{'0' * 32}-{SPAN}-01",
    "span id of zeros": f"00-{TRACE}-{'0' * 16}-01",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
    "version of one digit": f"0-{TRACE}-{SPAN}-01",
    "no version": f"{TRACE}-{SPAN}-01",
    "version 00 with more": f"{GOOD}-more",
    "dash at the end": f"{GOOD}-",
    "newline at the end": f"{GOOD}\n",
    "carriage return": f"{GOOD}\r\n",
    "space before": f" {GOOD}",
    "capitals": GOOD.upper(),
    "short trace id": f"00-{TRACE[1:]}-{SPAN}-01",
    "long trace id": f"00-{TRACE}0-{SPAN}-01",
    "not hex": f"00-{TRACE[:-1]}g-{SPAN}-01",
    "flags of one digit": f"00-{TRACE}-{SPAN}-1",
    "no flags": f"00-{TRACE}-{SPAN}",
    "underscores": GOOD.replace("-", "_"),
    "full-width digits": f"\uff10\uff10-{TRACE}-{SPAN}-01",
    "two headers": f"{GOOD},{GOOD}",
    "NUL": f"{GOOD}\x00",
    "JSON": '{"level":"error"}',
    "one megabyte": "0" * (1 << 19),
    "a version of one megabyte": f"cc-{TRACE}-{SPAN}-01-" + "x" * (1 << 19),
}
VALID = {
    "sampled": (GOOD, True),
    "not sampled": (f"00-{TRACE}-{SPAN}-00", False),
    "other flags": (f"00-{TRACE}-{SPAN}-fe", False),
    "all flags": (f"00-{TRACE}-{SPAN}-ff", True),
    "a later version": (f"01-{TRACE}-{SPAN}-01", True),
    "a later version with more": (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
}


@pytest.fixture
def ended() -> list[EndedRequest]:
    return []


@pytest.fixture
def client(serve: Callable[..., Sidecar], ended: list[EndedRequest]) -> Iterator[Client]:
    """A client of a sidecar whose ended requests are kept."""
    keeping = Parts(pipeline=lambda config, clock, _, ledger: Pipeline(config, clock, ended.append, ledger))
    with Client(serve(lambda config: Sidecar(config, write_log=lambda _: None, parts=keeping))) as one:
        one.register()
        yield one


def with_trace(header: str, state: str = "") -> ingest_pb2.StepBatch:
    batch = wire_batch(finished_request_ids=["req-0"])
    batch.segments.traceparents.append(header)
    if state:
        batch.segments.tracestates.append(state)
    return batch


def trace_of_its_request(client: Client, ended: list[EndedRequest], batch: ingest_pb2.StepBatch) -> TraceParent | None:
    """Send the batch, end its request, and return the trace that the request carried."""
    answer = client.observe(batch)
    assert answer.result is not None
    assert answer.result.outcome == ingest_pb2.OUTCOME_SCORED
    client.good(requests=[("next", (0, 1, 2))], finished_request_ids=["req-0"])
    client.status()  # behind the accounting
    (mine,) = [one for one in ended if one.request_id == "req-0"]
    return mine.traceparent


def ignored(client: Client) -> float:
    return float(client.series()["stethoscope_traceparents_ignored_total"])


@pytest.mark.parametrize("header", BAD.values(), ids=BAD.keys())
def test_a_bad_traceparent_is_ignored_and_counted_and_its_batch_is_scored(client, ended, header):
    assert trace_of_its_request(client, ended, with_trace(header)) is None
    assert ignored(client) == 1
    assert "# {" not in client.scrape(accept="application/openmetrics-text")


@pytest.mark.parametrize(("header", "sampled"), VALID.values(), ids=VALID.keys())
def test_a_valid_traceparent_reaches_the_request_and_its_exemplars(client, ended, header, sampled):
    assert trace_of_its_request(client, ended, with_trace(header)) == TraceParent(TRACE, SPAN, sampled)
    assert ignored(client) == 0
    assert f'trace_id="{TRACE}"' in client.scrape(accept="application/openmetrics-text")


@pytest.mark.parametrize("size", [513, 1 << 19])
def test_an_oversized_tracestate_costs_the_trace_and_is_counted(client, ended, size):
    assert trace_of_its_request(client, ended, with_trace(GOOD, "k=" + "v" * (size - 2))) is None
    assert ignored(client) == 1


@pytest.mark.parametrize("state", ["k=v", "\n", "\x1b[31m", "v" * 512])
def test_a_tracestate_within_the_limit_is_nobodys_business(client, ended, state):
    assert trace_of_its_request(client, ended, with_trace(GOOD, state)) == TraceParent(TRACE, SPAN, True)
    assert ignored(client) == 0


def test_a_bad_traceparent_of_one_request_does_not_touch_its_neighbours(client, ended):
    batch = wire_batch(requests=[("a", (0,)), ("b", (0,)), ("c", (0,))])
    batch.segments.traceparents.extend([GOOD, "nonsense", ""])
    client.observe(batch)
    client.good(requests=[("next", (0, 1, 2))], finished_request_ids=["a", "b", "c"])
    client.status()  # behind the accounting
    traces = {one.request_id: one.traceparent for one in ended}
    assert traces == {"a": TraceParent(TRACE, SPAN, True), "b": None, "c": None}
    assert ignored(client) == 1


def test_a_refused_batch_counts_no_traceparent(client):
    batch = with_trace("nonsense")
    batch.tensors[0].columns += 1
    assert client.observe(batch).text == "size_mismatch"
    batch = with_trace("nonsense")
    batch.engine_id = "nobody"
    assert client.observe(batch).text == "unknown_engine"
    assert ignored(client) == 0
