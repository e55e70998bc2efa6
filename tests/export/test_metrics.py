from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.errors import DropReason, RejectReason
from sidecar.export.accept import Format, negotiate
from sidecar.export.metric import PREFIX, Kind, Metric
from sidecar.export.metrics import MetricsCollector
from sidecar.export.page import Page
from sidecar.export.points import READERS, Point
from sidecar.export.table import BY_NAME, METRICS, PROBES
from sidecar.export.text import Text
from sidecar.snapshot import ArtifactSnapshot, Exemplar, Rung, RunSnapshot, Snapshot, Stage, Transport
from sidecar.types import Action, Evidence, TapPoint, UnseenReason
from tests.export.conftest import Promtool
from tests.export.examples import SPAN_ID, TRACE_ID, coverage, run, signal, snapshot

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
PROTOBUF = (  # what Prometheus asks for if it takes native histograms
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
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
    family = next(f for f in parse_openmetrics(page(accept=OPENMETRICS)) if _public_name(f) == metric.name)
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
    none = RunSnapshot()
    shown = samples(page(snapshot(unseen={}, reloads={}, http_requests={}, artifacts=(), run=none)))
    for account in ("step_batches", "rows"):
        for reason in DropReason:
            assert f'{PREFIX}{account}_dropped_total{{reason="{reason}"}}' in shown
        for reject in RejectReason:
            assert f'{PREFIX}{account}_rejected_total{{reason="{reject}"}}' in shown
    assert all(shown[f'{PREFIX}tokens_unseen_total{{reason="{reason}"}}'] == 0 for reason in UnseenReason)
    assert all(shown[f'{PREFIX}artifacts{{evidence="{word}"}}'] == 0 for word in (*Evidence, "refused"))
    assert shown[f'{PREFIX}artifact_reloads_total{{outcome="refused"}}'] == 0
    assert shown[f'{PREFIX}http_requests_total{{outcome="timed_out"}}'] == 0
    assert all(shown[f'{PREFIX}rung_changes_total{{rung="{rung}"}}'] == 0 for rung in Rung)
    assert all(shown[f'{PREFIX}verdicts_total{{action="{action}"}}'] == 0 for action in Action)
    assert all(shown[f'{PREFIX}engine_streams{{transport="{transport}"}}'] == 0 for transport in Transport)


def test_exactly_the_rung_in_force_is_1() -> None:
    for rung in Rung:
        shown = samples(page(snapshot(run=run(rung=rung))))
        assert {one: shown[f'{PREFIX}rung{{rung="{one}"}}'] for one in Rung} == {one: one is rung for one in Rung}


def test_streams_are_counted_by_transport_and_no_engine_is_named() -> None:
    text = page()
    assert samples(text)[f'{PREFIX}engine_streams{{transport="ring"}}'] == 2
    assert samples(text)[f'{PREFIX}engine_streams{{transport="grpc"}}'] == 1
    assert "engine-a" not in text


def test_a_queue_that_was_not_measured_is_absent_rather_than_zero() -> None:
    assert f"{PREFIX}queue_age_seconds_count" not in page(snapshot(run=run(queue_age=None)))


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
        'probe_detections_estimated_total{probe="spam"}': 2.5,
        'queue_age_seconds_bucket{le="0.00025"}': 0,
        'queue_age_seconds_bucket{le="0.0005"}': 1,
        "queue_age_seconds_count": 2,
        "queue_age_seconds_sum": pytest.approx(0.0203),
        'rung_changes_total{rung="no_sketches"}': 2,
        'verdicts_total{action="block"}': 1,
        "verdicts_late_total": 3,
        "sampling_request_fraction": 0.4,
        'kernel_info{kernel="torch",rows="64",tap_point="blocks.14.resid_post"}': 1,
        "projection_rows_checked_total": 640,
        "projection_rows_wrong_total": 1,
        "counts_age_seconds": 0.25,
        'stage_duration_seconds_bucket{le="0.001",stage="judge"}': 1,
        "step_budget_seconds": 0.006,
        'step_budget_use_ratio_bucket{le="0.1"}': 0,
        'step_budget_use_ratio_bucket{le="0.2"}': 1,
        'step_budget_use_ratio_bucket{le="1.0"}': 1,
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
    assert {str(bucket.exemplar.timestamp) for bucket in buckets if bucket.exemplar} == {"1700000000.250000000"}


def test_the_text_form_has_no_exemplars_and_both_forms_have_the_same_samples() -> None:
    text = page()
    assert TRACE_ID not in text

    def flat(found: Iterable[Family]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
        return {(s.name, tuple(sorted(s.labels.items())), s.value) for family in found for s in family.samples}

    assert flat(parse_text(text)) == flat(parse_openmetrics(page(accept=OPENMETRICS)))


@pytest.mark.parametrize("name", ['quoted "name"', "100 %d %s %%", "back\\slash\\n", "{a=b},c", "'"])
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_a_label_of_any_printable_text_comes_back_as_it_is(name: str, accept: str) -> None:
    text = page(snapshot(signals=(signal(name),)), accept)
    found = parse_openmetrics(text) if accept else list(parse_text(text))
    buckets = [s for family in found for s in family.samples if s.name == f"{PREFIX}probe_score_bucket"]
    assert {bucket.labels["probe"] for bucket in buckets} == {name}
    assert [bucket.value for bucket in buckets] == np.cumsum(signal().scores.counts).tolist()


@pytest.mark.parametrize("number", [0.1, 1e-300, 1.7976931348623157e308, 2**53 + 1, -0.0, 5e-324, 1 / 3])
def test_a_number_comes_back_as_it_is(number: float) -> None:
    for accept, parse in (("", parse_text), (OPENMETRICS, parse_openmetrics)):
        found = parse(page(snapshot(budget_s=number), accept))
        (value,) = (s.value for f in found for s in f.samples if s.name == f"{PREFIX}step_budget_seconds")
        assert value == number


def test_what_is_remembered_of_a_series_is_never_what_is_shown_of_the_next() -> None:
    shown = snapshot()
    collector = MetricsCollector(lambda: shown, version="0.1.0")
    first = collector.render(OPENMETRICS)[0]
    assert collector.render(OPENMETRICS)[0] == first
    shown = snapshot(signals=(signal("spam", scores=snapshot().budget_use, threshold=0.1), signal("third")))
    changed = collector.render(OPENMETRICS)[0]
    assert changed == MetricsCollector(lambda: shown, version="0.1.0").render(OPENMETRICS)[0]
    assert b'probe="sentiment"' not in changed


def test_names_that_come_and_go_do_not_pile_up() -> None:
    page_of_text = Page(Text(openmetrics=False))
    threshold = BY_NAME[f"{PREFIX}probe_threshold"]
    points = dict.fromkeys(BY_NAME, ())
    made = page_of_text._families[threshold.name]._made
    for n in range(5 * threshold.cap):
        text = page_of_text.render({**points, threshold.name: (Point((f"probe_{n}",), n),)})
        assert f'{threshold.name}{{probe="probe_{n}"}} {n}\n'.encode() in text
        assert len(made) <= 2 * threshold.cap


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROTOBUF, Format.PROTOBUF),
        (PROTOBUF.replace("q=0.8", "q=1"), Format.PROTOBUF),
        (
            'application/vnd.google.protobuf;proto="io.prometheus.client.MetricFamily";encoding=delimited',
            Format.PROTOBUF,
        ),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Format.TEXT),
        ("application/vnd.google.protobuf;proto=other.Message;encoding=delimited", Format.TEXT),
        (PROTOBUF.replace("delimited,", "delimited;q=0.1,"), Format.OPENMETRICS),
        (OPENMETRICS, Format.OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", Format.TEXT),
        ("application/openmetrics-text;q=nan", Format.TEXT),
        ("application/openmetrics-text;q=oops", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("*/*", Format.TEXT),
        ("", Format.TEXT),
        (",;,;=;,", Format.TEXT),
    ],
)
def test_the_format_is_negotiated(accept: str, wanted: Format) -> None:
    assert negotiate(accept) is wanted
    assert MetricsCollector(snapshot, version="0.1.0").render(accept)[1] == wanted.value


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


def test_tap_points_are_the_only_names_of_places() -> None:
    shown = samples(page(snapshot(coverage=(replace(coverage(), tap_point=TapPoint(3)),))))
    assert f'{PREFIX}tokens_seen_total{{tap_point="blocks.3.resid_post"}}' in shown
