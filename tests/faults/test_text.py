"""Texts from outside: what an id may look like, and that no other text gets any further than the refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.errors import Rejected
from sidecar.ingest.checks import check_id, check_ids, check_labels
from tests.builders import wire_batch, wire_model

BAD = {
    "newline": "quux\nquux",
    "newline at the end": "quux\n",
    "carriage return": "quux\r",
    "ANSI": "\x1b[31mred\x1b[0m",
    "JSON": '{"level": "error", "event": "forged"}',
    "log injection": 'x", "level":"error", "y":"',
    "NUL": "quux\x00",
    "space": "quux quux",
    "DEL": "quux\x7f",
    "right to left": "quux\u202eedis",
    "look-alike": "quu\uff58",
    "line separator": "quux\u2028quux",
    "combining": "qu\u0301ux",
    "astral": "quux\U0001f984",
    "quotes": 'quux"',
    "backslash": "quux\\n",
    "percent": "quux%0a",
    "oversized": "x" * 257,
}
PLACES: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "batch_id": (lambda text: {"batch_id": text}, "step_batch.batch_id"),
    "engine_id": (lambda text: {"engine_id": text}, "step_batch.engine_id"),
    "finished": (
        lambda text: {"finished_request_ids": ["a", "b", text]},
        "step_batch.finished_request_ids[2]",
    ),
}
COLUMNS = {
    "request_ids": "request_ids",
    "tenants": "tenants",
    "routes": "routes",
    "languages": "languages",
    "session_id_hashes": "session_id_hashes",
    "adapters": "adapters",
}


def with_column(name: str, text: str) -> ingest_pb2.StepBatch:
    """The second of two requests has the text in one column."""
    batch = wire_batch(requests=[("a", (0,)), ("b", (0,))])
    batch.segments.ClearField(name)
    getattr(batch.segments, name).extend(["a", text])
    return batch


def log_is_sound(lines: list[str], text: str) -> bool:
    """Every line is one JSON object of ours, and none carries the text in any form."""
    parsed = [json.loads(line) for line in lines]
    forms = (text, json.dumps(text)[1:-1], repr(text)[1:-1])
    return all("event" in one for one in parsed) and not [line for line in lines for form in forms if form in line]


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("place", PLACES)
def test_a_bad_text_is_refused_with_its_path_and_is_in_no_log_line(survivor, text, place):
    make, field = PLACES[place]
    survivor.refuses(wire_batch(**make(text)), "bad_text", field)
    assert log_is_sound(survivor.lines, text)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_text_in_a_column_is_refused_with_the_entry_that_is_wrong(survivor, text):
    for name in COLUMNS:
        answer = survivor.client.observe(with_column(name, text))
        assert (answer.code, answer.text) == (grpc.StatusCode.INVALID_ARGUMENT, "bad_text")
        assert answer.field == f"step_batch.segments.{name}[1]"
    assert log_is_sound(survivor.lines, text)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_bad_text_in_a_column_changes_nothing_else(survivor, name):
    survivor.refuses(with_column(name, BAD["ANSI"]), "bad_text", f"step_batch.segments.{name}[1]")


@pytest.mark.parametrize("place", PLACES)
def test_an_empty_id_is_refused_as_missing(survivor, place):
    make, field = PLACES[place]
    survivor.refuses(wire_batch(**make("")), "missing", field)


def test_an_empty_request_id_is_refused_as_missing(survivor):
    survivor.refuses(with_column("request_ids", ""), "missing", "step_batch.segments.request_ids[1]")


@pytest.mark.parametrize("name", sorted(set(COLUMNS) - {"request_ids"}))
def test_an_empty_label_is_nothing_to_say(survivor, name):
    assert survivor.client.observe(with_column(name, "")).result.outcome == ingest_pb2.OUTCOME_SCORED


@pytest.mark.parametrize(("field", "limit"), [("batch_id", 64), ("engine_id", 128)])
def test_an_id_of_full_length_passes_and_one_more_character_does_not(survivor, field, limit):
    answer = survivor.client.observe(wire_batch(**{field: "x" * (limit + 1)}))
    assert (answer.text, answer.field) == ("bad_text", f"step_batch.{field}")
    assert survivor.client.observe(wire_batch(**{field: "x" * limit})).text in ("", "unknown_engine")


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_bad_engine_id_does_not_register_and_is_in_no_log_line(survivor, text):
    request = control_pb2.RegisterRequest(engine_id=text, model=wire_model())
    with pytest.raises(grpc.RpcError) as refused:
        survivor.client.call("ControlService/Register", request.SerializeToString())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert log_is_sound(survivor.lines, text)


def test_every_character_that_the_contract_names_passes(survivor):
    survivor.client.good(requests=[("AZaz09._:/@#+=~-", (0, 1, 2))])


ALLOWED = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/@#+=~-")


def passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except Rejected:
        return False
    return True


@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=6) | st.text("ab c\n", max_size=4), max_size=5))
@settings(max_examples=300, deadline=None)
def test_a_column_passes_exactly_if_each_of_its_entries_does(texts):
    """The column is looked at as a whole: that must not let anything through between two entries."""
    sound = [bool(text) and set(text) <= ALLOWED for text in texts]
    assert passes(lambda: check_ids(texts, "f")) == all(sound)
    assert passes(lambda: check_labels(texts, "f")) == all(
        one or not text for one, text in zip(sound, texts, strict=True)
    )
    for text, one in zip(texts, sound, strict=True):
        assert passes(lambda text=text: check_id(text, 256, "f")) == one


def test_half_a_character_is_refused_like_any_other_that_is_not_allowed():
    """Protobuf lets none through, but what is built on it should not be what stands between it and a metric."""
    with pytest.raises(Rejected, match="bad_text at f"):
        check_ids(["a", "\ud800"], "f")
