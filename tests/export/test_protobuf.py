from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar.export.metric import PREFIX, Kind
from sidecar.export.metrics import MetricsCollector
from sidecar.export.table import METRICS
from sidecar.export.wire import delimited, signed, signed_list, varint
from sidecar.judge.tally import SCORE_EDGES, SHARE_EDGES, TallyBank
from sidecar.snapshot import Histogram, NativeBuckets, Snapshot
from tests.export import exposition
from tests.export.examples import SPAN_ID, TRACE_ID, signal, snapshot
from tests.export.exposition import COUNTER, GAUGE, HISTOGRAM
from tests.export.test_metrics import PROTOBUF, page

TYPES = {Kind.COUNTER: COUNTER, Kind.GAUGE: GAUGE, Kind.INFO: GAUGE, Kind.HISTOGRAM: HISTOGRAM}
Labels = tuple[tuple[str, str], ...]


def families(shown: Snapshot) -> dict[str, Any]:
    body, content_type = MetricsCollector(lambda: shown, version="0.1.0").render(PROTOBUF)
    assert content_type.startswith("application/vnd.google.protobuf; ")
    return {family.name: family for family in exposition.read(body)}


def native_bounds(histogram: Any) -> dict[float, int]:
    """Buckets that hold something by their upper bounds, as a reader of the format sees them."""
    deltas = list(histogram.positive_delta)
    bounds: dict[float, int] = {}
    index = count = 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += deltas.pop(0)
            bounds[2 ** (index / 2**histogram.schema)] = count
            index += 1
    assert not deltas
    return bounds


def shown_native(histogram: Histogram) -> Any:
    found = families(snapshot(signals=(signal("one", scores=histogram),)))
    return found[f"{PREFIX}probe_score"].metric[0].histogram


def test_every_metric_of_the_table_is_there_with_its_type_help_and_unit() -> None:
    found = families(snapshot())
    assert list(found) == [metric.name for metric in METRICS]
    for metric in METRICS:
        family = found[metric.name]
        assert (family.type, family.help, family.unit) == (TYPES[metric.kind], metric.help, metric.unit)


def test_it_has_the_samples_of_the_text_form() -> None:
    text: dict[tuple[str, Labels], float] = {
        (s.name, tuple(sorted(s.labels.items()))): s.value for f in parse_text(page()) for s in f.samples
    }
    rebuilt: dict[tuple[str, Labels], float] = {}
    for family in families(snapshot()).values():
        for metric in family.metric:
            labels = tuple((pair.name, pair.value) for pair in metric.label)
            if family.type != HISTOGRAM:
                rebuilt[family.name, labels] = (metric.counter if family.type == COUNTER else metric.gauge).value
                continue
            rebuilt[f"{family.name}_count", labels] = metric.histogram.sample_count
            rebuilt[f"{family.name}_sum", labels] = metric.histogram.sample_sum
            for bucket in metric.histogram.bucket:
                bound = "+Inf" if math.isinf(bucket.upper_bound) else str(bucket.upper_bound)
                rebuilt[f"{family.name}_bucket", tuple(sorted((*labels, ("le", bound))))] = bucket.cumulative_count
    assert rebuilt == text


def test_exemplars_stand_at_their_buckets_and_lead_to_the_trace() -> None:
    found = families(snapshot(signals=(signal(),)))
    (metric,) = found[f"{PREFIX}probe_score"].metric
    (bucket,) = [bucket for bucket in metric.histogram.bucket if bucket.HasField("exemplar")]
    assert bucket.upper_bound == 0.95
    (detections,) = found[f"{PREFIX}probe_detections_total"].metric
    for exemplar, value, nanos in (
        (bucket.exemplar, 0.93, 250_000_000),
        (detections.counter.exemplar, 0.9, 500_000_000),
    ):
        assert {pair.name: pair.value for pair in exemplar.label} == {"trace_id": TRACE_ID, "span_id": SPAN_ID}
        assert exemplar.value == value
        assert (exemplar.timestamp.seconds, exemplar.timestamp.nanos) == (1_700_000_000, nanos)


def test_a_histogram_without_observations_still_says_that_it_is_native() -> None:
    histogram = shown_native(TallyBank(SCORE_EDGES, 1).snapshot(0))
    assert (histogram.sample_count, histogram.schema, histogram.zero_threshold) == (0, 3, 2.0**-10)
    assert not histogram.positive_span
    assert not histogram.positive_delta


def test_a_histogram_without_native_buckets_has_the_classic_ones_alone() -> None:
    histogram = shown_native(Histogram((0.5,), np.array([2, 1]), 1.25))
    assert [(b.cumulative_count, b.upper_bound) for b in histogram.bucket] == [(2, 0.5), (3, math.inf)]
    assert not any(histogram.HasField(name) for name in ("schema", "zero_threshold", "zero_count"))


@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2**62)), min_size=1, max_size=40),
    first=st.integers(-200, 200),
    zero_count=st.integers(0, 2**63),
)
def test_native_buckets_come_back_as_they_are(counts: list[int], first: int, zero_count: int) -> None:
    buckets = NativeBuckets(3, 0.001, zero_count, first, np.array(counts, np.int64))
    histogram = shown_native(Histogram((0.5,), np.array([0, 1]), 1.0, (), buckets))
    assert (histogram.schema, histogram.zero_threshold, histogram.zero_count) == (3, 0.001, zero_count)
    expected = {2 ** ((first + i) / 8): count for i, count in enumerate(counts) if count}
    assert native_bounds(histogram) == expected


def test_every_observation_lies_in_its_native_bucket() -> None:
    values = np.random.default_rng(1).gamma(0.4, 0.8, 3000)
    bank = TallyBank(SHARE_EDGES, 1)
    bank.add(np.zeros(len(values), np.intp), values)
    histogram = shown_native(bank.snapshot(0))
    bounds = native_bounds(histogram)
    assert histogram.zero_count == int((values <= histogram.zero_threshold).sum()) > 0
    for bound, count in bounds.items():
        assert count == int(((values > bound / 2**0.125) & (values <= bound)).sum())
    assert sum(bounds.values()) + histogram.zero_count == histogram.sample_count == len(values)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16383, 16384, 2**32, 2**63, 2**64 - 1])
def test_numbers_are_read_back_by_protobuf_itself(number: int) -> None:
    family = exposition._Family.FromString(b"\x22\x02\x3a\x00")  # a metric with an empty histogram
    family.metric[0].histogram.sample_count = number
    written = b"\x08" + varint(number)
    assert family.metric[0].histogram.SerializeToString() == written
    for either in (number // 2, -(number // 2)):
        family.metric[0].histogram.positive_delta[:] = [either]
        packed = b"\x6a" + delimited(signed(either))
        assert family.metric[0].histogram.SerializeToString() == written + packed
        assert signed_list(np.array([either, either], np.int64)) == signed(either) * 2


def test_numbers_that_are_not_finite_are_left_out_as_in_the_text_form() -> None:
    found = families(snapshot(signals=(signal("broken", threshold=math.nan), signal("sound"))))
    (metric,) = found[f"{PREFIX}probe_threshold"].metric
    assert metric.label[0].value == "sound"
    left_out = {m.label[0].value: m.gauge.value for m in found[f"{PREFIX}series_left_out"].metric}
    assert left_out == {"cap": 0, "label": 0, "value": 1}
