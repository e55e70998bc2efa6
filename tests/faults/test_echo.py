"""What a refused caller is told: a fixed word and a path, nothing of what was sent or of what is served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from tests.builders import MODEL, wire_batch, wire_model, wire_tap
from tests.faults.survivor import encoded, standing

SECRET = "Zanzibar42"  # fits every pattern, so that only the place of it is wrong


def refused_bytes(client: Any, method: str, raw: bytes) -> tuple[grpc.StatusCode, bytes]:
    """Everything that a refused caller is told: the text and all the trailing metadata."""
    with pytest.raises(grpc.RpcError) as refused:
        client.call(method, raw)
    error: Any = refused.value
    trailers = b"".join(v if isinstance(v, bytes) else v.encode() for _, v in error.trailing_metadata())
    return error.code(), (error.details() or "").encode() + trailers


def test_another_model_is_refused_without_saying_what_was_sent_or_what_is_served(survivor):
    before = survivor.client.series()
    for change in ({"name": SECRET, "width": 99}, {"weights_digest": "f" * 64}, {"layers": 9}):
        model = wire_model(replace(MODEL, **change))
        request = control_pb2.RegisterRequest(engine_id=SECRET, model=model).SerializeToString()
        code, told = refused_bytes(survivor.client, "ControlService/Register", request)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert not [text for text in (SECRET, MODEL.name, MODEL.weights_digest) if text.encode() in told]
    changed = {name for name, value in survivor.client.series().items() if before.get(name) != value}
    assert {name.split("{")[0] for name in changed} <= {
        "stethoscope_engines_refused_total",
        "stethoscope_counts_age_seconds",
        "stethoscope_process_cpu_seconds_total",
        "stethoscope_process_resident_memory_bytes",
        "stethoscope_process_open_fds",
        "stethoscope_uptime_seconds",
        "stethoscope_http_requests_total",
    }
    assert survivor.client.series().keys() == before.keys()
    survivor.scores()


BAD_MODELS = {
    "no name": ({"name": ""}, "model.name"),
    "no architecture": ({"architecture": ""}, "model.architecture"),
    "no layers": ({"layers": 0}, "model.layers"),
    "too many layers": ({"layers": 10_001}, "model.layers"),
    "no width": ({"width": 0}, "model.width"),
    "too wide": ({"width": 65_537}, "model.width"),
    "newline in the name": ({"name": "a\nb"}, "model.name"),
    "long dtype": ({"dtype": "x" * 201}, "model.dtype"),
    "digest of capitals": ({"weights_digest": "A" * 64}, "model.weights_digest"),
    "short digest": ({"tokenizer_digest": "a" * 63}, "model.tokenizer_digest"),
}


@pytest.mark.parametrize(("changes", "field"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_is_refused_with_the_field(survivor, changes, field):
    before = survivor.client.series()
    with pytest.raises(grpc.RpcError) as refused:
        survivor.client.register(replace(MODEL, **changes), engine="engine-5")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    _, told = refused_bytes(
        survivor.client,
        "ControlService/Register",
        control_pb2.RegisterRequest(
            engine_id="engine-5", model=wire_model(replace(MODEL, **changes))
        ).SerializeToString(),
    )
    assert field.encode() in told
    assert standing(survivor.client.series()) == standing(before)
    survivor.scores()


def test_no_value_of_a_refused_batch_is_echoed_and_no_series_is_made(survivor):
    """Every kind of refusal in one batch each, with a marked word and marked numbers in all its other fields."""
    marked: dict[str, Any] = {"batch_id": SECRET, "finished_request_ids": [SECRET], "step": 777_000_777}
    requests = [(SECRET, (770_077, 770_078, 770_079))]
    before = survivor.client.series()
    tensor = wire_batch().tensors[0]
    wrong: list[dict[str, Any]] = [
        {"taken_ns": 770_077_770_077},
        {"plan_generation": 770_077},
        {"tensors": [ingest_pb2.TapTensor(tap_point=wire_tap(), dtype=tensor.dtype, rows=770_077)]},
        {"engine_id": f"{SECRET}-engine"},
        {"finished_request_ids": [f"{SECRET}\n"]},
    ]
    for changes in wrong:
        raw = encoded(wire_batch(requests=requests, **{**marked, **changes}))
        code, told = refused_bytes(survivor.client, "IngestService/Observe", raw)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert not [one for one in (SECRET.encode(), b"77007", b"777000777") if one in told], told
    assert survivor.client.series().keys() == before.keys()
    assert not [line for line in survivor.lines if SECRET in line or "770077" in line]
    page = survivor.client.scrape() + survivor.client.scrape(accept="application/openmetrics-text")
    assert SECRET not in page
    survivor.scores()
