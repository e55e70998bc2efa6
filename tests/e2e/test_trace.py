"""From the request's own traceparent, through model, tap and sidecar, to a real OTLP receiver: one trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import AutoTokenizer

from sidecar.tap.transformers import attach
from sidecar.types import SamplingPolicy
from tests.e2e.own import write_artifacts
from tests.export.receivers import Receiver, attributes
from tests.service.client import Client
from tests.tap.models import save_tiny, tiny
from tests.waiting import until


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    one = Receiver()
    one.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", one.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield one
    one.stop()


@pytest.mark.shows("transformers", "traces")
def test_each_sampled_request_has_one_span_under_its_own_parent_with_its_scores(serve, home, receiver):
    import torch

    model, tokenizer = tiny(), AutoTokenizer.from_pretrained(save_tiny(home / "model"))
    write_artifacts(model, 1, home / "own", tokenizer)
    flags = {
        "artifacts.folder": str(home / "own"),
        "limits.rows": 4096,
        "traces.enabled": True,
        "traces.root_fraction": 0.0,
    }
    running = serve(**flags)
    tap = attach(model, tokenizer=tokenizer, address=running.address, sampling=SamplingPolicy(1.0))
    parents = {f"req-{i}": f"00-{i + 1:032x}-{i + 1:016x}-01" for i in range(3)}
    unsampled = f"00-{99:032x}-{99:016x}-00"
    try:
        until(lambda: bool(tap.client.settings.tap_points))
        with tap.requests([*parents, "quiet"], [*parents.values(), unsampled]):
            model.generate(torch.randint(3, 500, (4, 9)), max_new_tokens=3, do_sample=False)
        until(lambda: running.status().spans_exported >= len(parents))
        with Client(running) as client:
            page = client.scrape(accept="application/openmetrics-text;version=1.0.0")
    finally:
        tap.detach(10.0)
    running.stop()  # what is to be exported has been
    all_spans = receiver.spans()
    assert all(
        attributes(one)["stethoscope.flagged"] for one in all_spans if attributes(one)["gen_ai.request.id"] == "quiet"
    )
    spans = [one for one in all_spans if attributes(one)["gen_ai.request.id"] != "quiet"]
    assert {(one.trace_id.hex(), one.parent_span_id.hex()) for one in spans} == {
        (f"{i + 1:032x}", f"{i + 1:016x}") for i in range(3)
    }
    assert {attributes(one)["gen_ai.request.id"] for one in spans} == set(parents)
    assert all(any("my_probe" in key for key in attributes(one)) for one in spans)
    assert {event.span_id for event in receiver.events()} == {one.span_id for one in all_spans}
    traces = {line.split('trace_id="')[1][:32] for line in page.splitlines() if "# {" in line and "trace_id=" in line}
    assert traces
    assert traces <= {parent.split("-")[1] for parent in (*parents.values(), unsampled)}
