"""A million entries where a few belong: what is too much is seen before it is looked at."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.config import Limits
from sidecar.errors import Rejected
from sidecar.ingest import decode
from sidecar.ingest.checks import parse
from tests.builders import wire_batch
from tests.faults.survivor import encoded

MILLION = 10**6
LIMIT_BYTES = 24 << 20
ROUNDS = 3

COLUMNS: dict[str, tuple[Any, str]] = {  # one entry, and why a million of them are refused
    "request_ids": ("x", "too_many"),
    "positions": (1, "too_many"),
    "unseen": (ingest_pb2.SegmentUnseen(reason=ingest_pb2.UNSEEN_REASON_SAMPLING, tokens=1), "too_many"),
    "rows": (1, "bad_shape"),
    "phases": (1, "bad_shape"),
    "prompt_tokens": (1, "bad_shape"),
    "traceparents": ("x", "bad_shape"),
    "tracestates": ("x", "bad_shape"),
    "session_id_hashes": ("x", "bad_shape"),
    "tenants": ("x", "bad_shape"),
    "routes": ("x", "bad_shape"),
    "languages": ("x", "bad_shape"),
    "canaries": (True, "bad_shape"),
    "adapters": ("x", "bad_shape"),
    "media": (ingest_pb2.MediaSpan(medium=ingest_pb2.MEDIUM_IMAGE, tokens=1), "too_many"),
}


def with_column(name: str) -> bytes:
    batch = wire_batch()
    getattr(batch.segments, name).extend([COLUMNS[name][0]] * MILLION)
    return encoded(batch)


def with_repeated(**fields: list[Any]) -> bytes:
    return encoded(wire_batch(**fields))


def many_tensors() -> bytes:
    return with_repeated(tensors=[ingest_pb2.TapTensor()] * MILLION)


def many_finished() -> bytes:
    return with_repeated(finished_request_ids=["x"] * MILLION)


def many_unknown() -> bytes:
    return encoded(wire_batch()) + b"\xa0\x3e\x01" * MILLION


def many_reasons() -> bytes:
    report = ingest_pb2.TrafficReport(engine_id="engine-0", unseen=[ingest_pb2.Unseen(reason=1, tokens=1)] * MILLION)
    return ingest_pb2.ObserveRequest(step_batch=wire_batch(), traffic=report).SerializeToString()


OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "tensors": (many_tensors, "too_many at step_batch.tensors"),
    "finished_request_ids": (many_finished, "too_many at step_batch.finished_request_ids"),
    "traffic.unseen": (many_reasons, "too_many at traffic.unseen"),
    "unknown fields": (many_unknown, "sound"),
}


def outcome(raw: bytes) -> str:
    """Decode as the service does; "sound", or how it was refused."""
    request = parse(ingest_pb2.ObserveRequest, raw)
    try:
        decode.Decoder(Limits(), SystemClock()).step_batch(request.step_batch)
        if request.HasField("traffic"):
            decode.traffic_report(request.traffic)
    except Rejected as rejected:
        return str(rejected)
    return "sound"


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of this thread: what the neighbours do at the same time is not in it."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def times_bare_parse(raw: bytes) -> float:
    """Median over pairs taken in turns: decoding until the refusal, as a multiple of parsing alone."""
    outcome(raw)
    pairs = [(cpu_s(lambda: outcome(raw)), cpu_s(lambda: parse(ingest_pb2.ObserveRequest, raw))) for _ in range(ROUNDS)]
    return statistics.median(whole / bare for whole, bare in pairs)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_million_entries_in_a_column_cost_no_more_than_their_parsing(name):
    raw = with_column(name)
    assert len(raw) <= LIMIT_BYTES
    assert outcome(raw) == f"{COLUMNS[name][1]} at step_batch.segments.{name}"
    assert times_bare_parse(raw) <= 1.5


@pytest.mark.parametrize(("make", "wanted"), OTHERS.values(), ids=OTHERS.keys())
def test_a_million_entries_elsewhere_cost_no_more_than_their_parsing(make, wanted):
    raw = make()
    assert len(raw) <= LIMIT_BYTES
    assert outcome(raw) == wanted
    assert times_bare_parse(raw) <= 1.5


def test_a_million_finished_requests_are_refused_by_their_number():
    message = ingest_pb2.RequestsFinished(engine_id="engine-0", request_ids=["x"] * MILLION)
    with pytest.raises(Rejected, match=r"too_many at finished\.request_ids"):
        decode.Decoder(Limits(), SystemClock()).finished(message)


@pytest.mark.parametrize("name", ["request_ids", "positions", "canaries"])
def test_the_service_refuses_a_million_entries_and_goes_on(survivor, name):
    survivor.refuses(with_column(name), COLUMNS[name][1], f"step_batch.segments.{name}")


def test_a_full_table_of_ids_that_is_wrong_at_its_end_costs_a_few_times_what_a_sound_one_costs():
    """The largest that the limits allow; nothing in the looking may grow faster than the table."""
    count = Limits().finished
    ids = [f"{i:0256}" for i in range(count)]
    sound, wrong = (encoded(wire_batch(finished_request_ids=[*ids[:-1], last])) for last in (ids[-1], "x" * 255 + "\n"))
    assert outcome(sound) == "sound"
    assert outcome(wrong) == f"bad_text at step_batch.finished_request_ids[{count - 1}]"
    pairs = [(cpu_s(lambda: outcome(wrong)), cpu_s(lambda: outcome(sound))) for _ in range(ROUNDS)]
    assert statistics.median(refused / taken for refused, taken in pairs) <= 8
