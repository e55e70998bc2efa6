"""Rows are the user's words: none may be found anywhere that outlives its step."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protos.stethoscope.v1 import ingest_pb2
from tests.builders import WIDTH, wire_batch
from tests.export.receivers import Receiver
from tests.faults.values import as_tensor, bits
from tests.service.client import Client

PUSHED = 1000
# A row that nothing else in the world looks like: as bytes of every type, and as the digits of its values.
CANARY = np.array([31415.93 + 733.17 * i for i in range(WIDTH)], dtype=np.float32)
WORDS = {"tenant": "tenant-kiwi", "session": "session-kiwi", "language": "x-kiwi"}


def forms() -> list[bytes]:
    """Every way in which a part of the row could be written down: any four elements running, any single value's digits."""
    found = []
    for dtype in ("f32", "f16", "bf16"):
        raw = bits(CANARY[None, :], dtype).tobytes()
        width = len(raw) // WIDTH
        parts = [raw[i * width : (i + 4) * width] for i in range(WIDTH - 3)]
        found += parts + [part.hex().encode() for part in parts]
    found += [struct.pack("<d", float(value)) for value in CANARY]
    found += [f"{float(value):.2f}".encode() for value in CANARY]
    return found + [word.encode() for word in WORDS.values()]


def found_in(haystack: bytes) -> list[bytes]:
    return [form for form in forms() if form in haystack]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    made.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    yield made
    made.stop()


def sound(number: int) -> ingest_pb2.StepBatch:
    """A batch of one canary row that is scored, flagged, traced, and ends the request before it."""
    dtype = ("f32", "f16", "bf16")[number % 3]
    batch = wire_batch(
        tensors=[as_tensor(bits(CANARY[None, :], dtype), dtype)],
        requests=[(f"r{number}", (5,))],
        rows=CANARY[None, :],
        finished_request_ids=[f"r{number - 1}"],
    )
    batch.segments.traceparents.append(f"00-{number + 1:032x}-{number + 1:016x}-01")
    batch.segments.tenants.append(WORDS["tenant"])
    batch.segments.session_id_hashes.append(WORDS["session"])
    batch.segments.languages.append(WORDS["language"])
    return batch


def spoiled(number: int) -> ingest_pb2.StepBatch:
    """The same, refused in one of the ways that come late: after the row was looked at."""
    batch = sound(number)
    kind = number % 4
    if kind == 0:
        rows = np.stack([CANARY, CANARY])
        rows[1, 3] = np.nan
        batch.segments.rows[0] = 2
        batch.segments.positions.append(6)
        batch.tensors[0].CopyFrom(as_tensor(bits(rows, "f32"), "f32"))
    elif kind == 1:
        batch.tensors[0].raw += b"\x00"
    elif kind == 2:
        batch.tensors[0].tap_point.layer = 99
    else:
        batch.engine_id = "nobody"
    return batch


def files_beneath(home: Path) -> bytes:
    """All that the sidecar could have written in its folder, names included."""
    regular = [path for path in home.rglob("*") if path.is_file()]
    return b"".join(str(path).encode() + path.read_bytes() for path in regular)


def test_a_row_pushed_a_thousand_times_is_found_in_no_log_span_metric_or_file(serve, home, lines, receiver):
    with Client(serve(**{"traces.enabled": True, "log.level": "DEBUG", "log.lines_per_s": 10000})) as client:
        client.register()
        stream = client.stream()
        for number in range(PUSHED):
            stream.send_batch(spoiled(number) if number % 5 == 0 else sound(number))
        results = [stream.next_result() for _ in range(PUSHED)]
        client.good(requests=[("last", (0, 1, 2))], finished_request_ids=[f"r{PUSHED - 1}"])
        page = client.scrape() + client.scrape(accept="application/openmetrics-text") + str(client.status())
        stream.cancel()
        client.sidecar.stop()  # type: ignore[attr-defined]
    assert sum(one.outcome == ingest_pb2.OUTCOME_SCORED for one in results) == PUSHED * 4 // 5
    assert sum(bool(one.verdicts) for one in results) > 0
    exported = b"".join(one.SerializeToString() for one in (*receiver.spans(at_least=PUSHED // 2), *receiver.events()))
    assert b"gen_ai" in exported
    assert len(lines) > PUSHED // 5
    for name, haystack in {
        "log": "".join(
            str({**json.loads(line), "ts": None}) for line in lines
        ).encode(),  # a time could have its digits
        "metrics and status": page.encode(),
        "spans and events": exported,
        "files": files_beneath(home),
        "answers": b"".join(one.SerializeToString() for one in results),
    }.items():
        assert not found_in(haystack), name


def test_the_search_would_find_a_row_wherever_it_stood():
    assert found_in(b"..." + CANARY.tobytes() + b"...")
    assert found_in(str([round(float(value), 3) for value in CANARY]).encode())
    assert found_in(CANARY.tobytes().hex().encode())
    assert found_in(sound(1).SerializeToString())
