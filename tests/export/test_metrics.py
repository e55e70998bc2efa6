from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import CollectorRegistry

from probes.registry import load_folder
from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.errors import DropReason, RejectReason
from sidecar.export.metrics import MetricsCollector, prefers_openmetrics
from sidecar.export.points import READERS
from sidecar.export.table import METRICS, PREFIX, PROBES, Kind, Metric
from sidecar.pipeline import Pipeline
from sidecar.snapshot import ArtifactSnapshot, Exemplar, Snapshot, Stage
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    Evidence,
    Phase,
    RequestId,
    Segments,
    StepBatch,
    TapLedgerCounts,
    TapPoint,
    TapTensor,
    TrafficReport,
    UnseenReason,
)
from tests.builders import MODEL, TAP, WIDTH, write_control, write_probe
from tests.export.conftest import Promtool
from tests.export.examples import SPAN_ID, TRACE_ID, coverage, signal, snapshot

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
TYPES = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram", Kind.INFO: "gauge"}


def page(shown: Snapshot | None = None, accept: str = "") -> str:
    made = snapshot() if shown is None else shown
    return MetricsCollector(lambda: made, version="0.1.0").render(accept)[0].decode()


def samples(text: str) -> dict[str, float]:
    """Lines of the text form by everything before the value."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def parse_openmetrics(text: str) -> list[Family]:
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # has no types


def families(text: str) -> dict[str, Family]:
    return {family.name: family for family in parse_text(text)}


def left_out(text: str) -> dict[str, float]:
    found = samples(text)
    return {why: found[f'{PREFIX}series_left_out{{reason="{why}"}}'] for why in ("cap", "label", "value")}


def test_every_metric_of_the_table_is_exposed_with_its_type_and_help_and_nothing_else() -> None:
    text = page()
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert exposed == {metric.name: TYPES[metric.kind] for metric in METRICS}
    assert dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE)) == {m.name: m.help for m in METRICS}
    assert not any(math.isnan(value) for value in samples(text).values())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_the_labels_of_the_table_and_at_least_one_series(metric: Metric) -> None:
    family = next(f for f in MetricsCollector(snapshot, version="0.1.0").collect() if _public_name(f) == metric.name)
    assert family.samples
    for sample in family.samples:
        assert set(sample.labels) - {"le"} == set(metric.label_names)
    for label in metric.labels:
        seen = {sample.labels[label.name] for sample in family.samples}
        assert not label.values or seen <= set(label.values)


def _public_name(family: Family) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def test_names_and_units_follow_the_rules() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith(PREFIX)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.name.endswith("_info") == (metric.kind is Kind.INFO)
        assert not metric.unit or metric.name.endswith(f"_{metric.unit}")
        assert metric.cap >= 1


def test_every_reader_belongs_to_a_metric() -> None:
    assert READERS.keys() == {metric.name for metric in METRICS} - {f"{PREFIX}series_left_out", f"{PREFIX}build_info"}


def test_every_reason_is_there_before_it_ever_happens() -> None:
    shown = samples(page(snapshot(unseen={}, reloads={}, http_requests={}, artifacts=())))
    for account in ("step_batches", "rows"):
        for reason in DropReason:
            assert f'{PREFIX}{account}_dropped_total{{reason="{reason}"}}' in shown
        for reject in RejectReason:
            assert f'{PREFIX}{account}_rejected_total{{reason="{reject}"}}' in shown
    assert all(shown[f'{PREFIX}tokens_unseen_total{{reason="{reason}"}}'] == 0 for reason in UnseenReason)
    assert all(shown[f'{PREFIX}artifacts{{evidence="{word}"}}'] == 0 for word in (*Evidence, "refused"))
    assert shown[f'{PREFIX}artifact_reloads_total{{outcome="refused"}}'] == 0
    assert shown[f'{PREFIX}http_requests_total{{outcome="timed_out"}}'] == 0


def test_the_values_are_those_of_the_snapshot() -> None:
    shown = samples(page())
    expected = {
        "step_batches_received_total": 10,
        "step_batches_scored_total": 6,
        'step_batches_dropped_total{reason="duplicate"}': 1,
        'rows_rejected_total{reason="non_finite"}': 2,
        "rows_in_flight": 1,
        'probe_score_bucket{le="0.5",probe="sentiment"}': 2,
        'probe_score_bucket{le="0.95",probe="sentiment"}': 4,
        'probe_score_bucket{le="+Inf",probe="sentiment"}': 4,
        'probe_score_count{probe="sentiment"}': 4,
        'probe_score_sum{probe="sentiment"}': pytest.approx(1.88),
        'probe_request_score_count{probe="spam"}': 2,
        'probe_detections_total{probe="spam"}': 1,
        'probe_threshold{probe="spam"}': 0.81,
        'probe_target_false_positive_ratio{probe="spam"}': 0.05,
        'artifacts{evidence="refused"}': 1,
        'artifact_reloads_total{outcome="ok"}': 2,
        "plan_generation": 3,
        'stage_duration_seconds_bucket{le="0.001",stage="judge"}': 1,
        "step_budget_seconds": 0.006,
        'step_budget_use_ratio_bucket{le="0.5"}': 1,
        'tokens_expected_total{tap_point="blocks.14.resid_post"}': 100,
        'tokens_seen_total{tap_point="blocks.20.resid_post"}': 99,
        'tokens_unseen_total{reason="sampling"}': 7,
        'positive_control_rows_total{in_range="true",tap_point="blocks.14.resid_post"}': 97,
        'positive_control_rows_total{in_range="false",tap_point="blocks.14.resid_post"}': 2,
        "tap_batches_sent_total": 10,
        'tap_batches_total{outcome="unknown"}': 1,
        "traceparents_ignored_total": 1,
        "spans_exported_total": 3,
        'http_requests_total{outcome="answered"}': 4,
        "uptime_seconds": 12.5,
        'build_info{version="0.1.0"}': 1,
    }
    assert {name: shown[PREFIX + name] for name in expected} == expected
    info = next(line for line in shown if line.startswith(f"{PREFIX}signal_info") and 'probe="sentiment"' in line)
    assert 'aggregation="mean",certified="true",digest="abababababab",evidence="decodable"' in info
    assert 'tap_point="blocks.14.resid_post",version="1.0.0"' in info


@pytest.mark.parametrize("account", ["step_batches", "rows"])
def test_the_identity_of_the_ledger_holds_on_the_page(account: str) -> None:
    shown = samples(page())

    def total(what: str) -> float:
        return sum(value for name, value in shown.items() if name.startswith(f"{PREFIX}{account}_{what}"))

    assert total("received") == total("scored") + total("dropped") + total("rejected") + total("in_flight") > 0


def test_blind_is_told_per_tap_point_and_for_the_whole_even_without_any_tap_point() -> None:
    shown = samples(page(snapshot(coverage=(coverage(14), coverage(20, blind=True)), blind=True)))
    assert shown[f'{PREFIX}blind{{tap_point="blocks.14.resid_post"}}'] == 0
    assert shown[f'{PREFIX}blind{{tap_point="blocks.20.resid_post"}}'] == 1
    assert shown[f'{PREFIX}blind{{tap_point="any"}}'] == 1
    assert samples(page(snapshot(coverage=(), blind=True)))[f'{PREFIX}blind{{tap_point="any"}}'] == 1


def test_openmetrics_parses_and_its_exemplars_lead_to_the_trace() -> None:
    text = page(accept=OPENMETRICS)
    assert text.endswith("# EOF\n")
    found = parse_openmetrics(text)
    assert {_public_name(family) for family in found} == {metric.name for metric in METRICS}
    exemplars = {
        s.name: s.exemplar for f in found for s in f.samples if s.exemplar and "sentiment" in s.labels.values()
    }
    assert exemplars.keys() == {
        f"{PREFIX}probe_score_bucket",
        f"{PREFIX}probe_request_score_bucket",
        f"{PREFIX}probe_detections_total",
    }
    assert all(e.labels == {"trace_id": TRACE_ID, "span_id": SPAN_ID} for e in exemplars.values())
    assert exemplars[f"{PREFIX}probe_score_bucket"].value == 0.93


def test_an_exemplar_stands_at_the_bucket_that_holds_its_value() -> None:
    found = parse_openmetrics(page(accept=OPENMETRICS))
    buckets = [s for family in found for s in family.samples if s.name == f"{PREFIX}probe_score_bucket" and s.exemplar]
    assert [bucket.labels["le"] for bucket in buckets] == ["0.95", "0.95"]


def test_the_text_form_has_no_exemplars_and_both_forms_have_the_same_samples() -> None:
    text = page()
    assert TRACE_ID not in text

    def flat(found: Iterable[Family]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
        return {(s.name, tuple(sorted(s.labels.items())), s.value) for family in found for s in family.samples}

    assert flat(parse_text(text)) == flat(parse_openmetrics(page(accept=OPENMETRICS)))


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (OPENMETRICS, True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=oops", False),
        ("text/plain;version=0.0.4", False),
        ("*/*", False),
        ("", False),
        (",;,;=;,", False),
    ],
)
def test_the_format_is_negotiated(accept: str, wanted: bool) -> None:
    assert prefers_openmetrics(accept) is wanted
    content_type = MetricsCollector(snapshot, version="0.1.0").render(accept)[1]
    assert content_type.startswith(
        "application/openmetrics-text; version=1.0.0" if wanted else "text/plain; version=0.0.4"
    )


def test_nothing_of_the_request_header_is_echoed_in_the_content_type() -> None:
    accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;evil=1,text/plain;version=9.9;q=0.1"
    content_type = MetricsCollector(snapshot, version="0.1.0").render(accept)[1]
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_left_out_and_counted_and_the_rest_stands(number: float) -> None:
    broken = signal("broken", threshold=number, scores=replace(signal().scores, total=number))
    text = page(snapshot(signals=(broken, signal("sound"))))
    assert left_out(text) == {"cap": 0, "label": 0, "value": 2}
    shown = samples(text)
    assert f'{PREFIX}probe_threshold{{probe="broken"}}' not in shown
    assert shown[f'{PREFIX}probe_threshold{{probe="sound"}}'] == 0.81
    assert shown[f'{PREFIX}probe_detections_total{{probe="broken"}}'] == 1


def test_an_exemplar_that_is_not_finite_costs_only_itself() -> None:
    bad = signal(detection_exemplar=Exemplar(math.nan, TRACE_ID, SPAN_ID, 0.0))
    found = parse_openmetrics(page(snapshot(signals=(bad,)), OPENMETRICS))
    detections = [s for family in found for s in family.samples if s.name == f"{PREFIX}probe_detections_total"]
    assert [(s.value, s.exemplar) for s in detections] == [(1, None)]


@pytest.mark.parametrize("name", ["\ud800", "two\nlines", "x" * 200, "\x1b[31m"])
def test_a_label_that_could_break_the_page_is_left_out_and_counted(name: str) -> None:
    text = page(snapshot(signals=(signal(name), signal("sound"))))
    assert name not in text
    assert left_out(text)["label"] == sum(metric.labels[:1] == _PROBE for metric in METRICS)
    assert samples(text)[f'{PREFIX}probe_threshold{{probe="sound"}}'] == 0.81


_PROBE = next(metric for metric in METRICS if metric.name == f"{PREFIX}probe_threshold").labels


def test_a_label_outside_its_closed_set_is_left_out_and_counted() -> None:
    stray = snapshot(
        artifacts=(ArtifactSnapshot("x", "", "surprising", ""),),
        stages={**snapshot().stages, "lunch": snapshot().budget_use},
        reloads={"perhaps": 1},
    )
    text = page(stray)
    assert left_out(text) == {"cap": 0, "label": 3, "value": 0}
    assert not {"surprising", "lunch", "perhaps"} & set(re.findall(r'"([^"]*)"', text))


def test_series_beyond_the_cap_are_left_out_and_counted() -> None:
    signals = tuple(signal(f"probe_{n:03}") for n in range(PROBES + 3))
    text = page(snapshot(signals=signals))
    assert len(families(text)[f"{PREFIX}probe_threshold"].samples) == PROBES
    assert left_out(text)["cap"] == 3 * sum(metric.labels[:1] == _PROBE for metric in METRICS)


def test_a_registry_learns_the_names_without_taking_a_snapshot() -> None:
    def refuse() -> Snapshot:
        raise AssertionError("a snapshot was taken")

    registry = CollectorRegistry(auto_describe=True)
    registry.register(MetricsCollector(refuse, version="0.1.0"))


def test_one_scrape_takes_one_snapshot() -> None:
    taken = []

    def source() -> Snapshot:
        taken.append(1)
        return snapshot()

    MetricsCollector(source, version="0.1.0").render(OPENMETRICS)
    assert len(taken) == 1


def test_stages_that_were_not_measured_are_absent_rather_than_zero() -> None:
    text = page(snapshot(stages={Stage.READ: snapshot().budget_use}))
    assert f'{PREFIX}stage_duration_seconds_count{{stage="read"}}' in samples(text)
    assert 'stage="judge"' not in text


def test_promtool_finds_nothing_to_complain_about(promtool: Promtool) -> None:
    checked = promtool("check", "metrics", page=page())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_promtool_does_complain_about_a_bad_page(promtool: Promtool) -> None:
    checked = promtool("check", "metrics", page="# TYPE x_total gauge\nx_total 1\n")
    assert checked.returncode != 0
    assert "x_total" in checked.stderr


def _crowd(first: int, size: int) -> StepBatch:
    """One batch of ``size`` requests never seen before, each with a tenant, a route and a trace of its own."""
    numbers = range(first, first + size)
    segments = Segments(
        request_ids=tuple(RequestId(f"request-{n}") for n in numbers),
        starts=np.arange(size),
        rows=np.ones(size, np.intp),
        positions=np.zeros(size, np.uint32),
        phases=np.full(size, Phase.PREFILL, np.int8),
        prompt_tokens=np.zeros(size, np.intp),
        traceparents=tuple(f"00-{n + 1:032x}-{n + 1:016x}-01" for n in numbers),
        session_id_hashes=tuple(f"session-{n}" for n in numbers),
        tenants=tuple(f"tenant-{n}" for n in numbers),
        routes=tuple(f"route-{n}" for n in numbers),
        languages=tuple(f"x-{n}" for n in numbers),
    )
    rows = np.random.default_rng(first).normal(size=(size, WIDTH)).astype("<f4")
    tensors = (TapTensor(TAP, ElementType.F32, rows),)
    return StepBatch(
        BatchId(f"batch-{first}"), EngineId("engine-0"), 0, 0, first, segments, tensors, segments.request_ids
    )


def test_a_hundred_thousand_requests_and_tenants_change_no_series(tmp_path: Path) -> None:
    write_probe(tmp_path, "first")
    write_control(tmp_path)
    pipeline = Pipeline(Config(), ManualClock(), lambda _: None)
    pipeline.load(load_folder(tmp_path, limit=8))
    pipeline.register(MODEL, TrafficReport(EngineId("engine-0"), 0, 0, (), 0, TapLedgerCounts()))
    collector = MetricsCollector(lambda: pipeline.snapshot(0.0), version="0.1.0")
    pipeline.arrive()
    pipeline.submit(_crowd(0, 1), 0.0)
    before = samples(collector.render()[0].decode())
    for first in range(1, 100_001, 1000):
        pipeline.arrive()
        assert pipeline.submit(_crowd(first, 1000), 0.0).scored
        pipeline.settle()
    after = samples(collector.render()[0].decode())
    assert after.keys() == before.keys()
    assert after[f"{PREFIX}rows_scored_total"] == 100_001
    assert len(collector.render(OPENMETRICS)[0]) < 64 * 1024


def test_tap_points_are_the_only_names_of_places() -> None:
    shown = samples(page(snapshot(coverage=(replace(coverage(), tap_point=TapPoint(3)),))))
    assert f'{PREFIX}tokens_seen_total{{tap_point="blocks.3.resid_post"}}' in shown
