"""The protobuf format: io.prometheus.client.MetricFamily messages, the only form in which native histograms travel."""

from __future__ import annotations

import math
from itertools import accumulate

from sidecar.export.metric import Kind, Metric
from sidecar.export.page import Show
from sidecar.export.points import Point
from sidecar.export.wire import (
    content_field,
    content_tag,
    count_field,
    count_tag,
    delimited,
    double_field,
    signed,
    signed_list,
    text_field,
    varint,
)
from sidecar.snapshot import Exemplar, Histogram, NativeBuckets

# MetricType, and the field of Metric that holds its value. A fact is a gauge of 1.
_COUNTER, _GAUGE, _HISTOGRAM = (0, 3), (1, 2), (4, 7)
_KINDS = {Kind.COUNTER: _COUNTER, Kind.GAUGE: _GAUGE, Kind.INFO: _GAUGE, Kind.HISTOGRAM: _HISTOGRAM}
_METRIC = content_tag(4)
_BUCKET, _CUMULATIVE_COUNT = content_tag(3), count_tag(1)
_SCHEMA, _SPAN, _OFFSET, _LENGTH, _DELTAS = count_tag(5), content_tag(12), count_tag(1), count_tag(2), content_tag(13)
_LABEL, _TRACE_ID, _SPAN_ID = (
    content_tag(1),
    *(text_field(1, name) + content_tag(2) for name in ("trace_id", "span_id")),
)
_TIMESTAMP, _SECONDS, _NANOS = content_tag(3), count_tag(1), count_tag(2)


class Protobuf:
    """One delimited message for each metric; a histogram carries its classic and its native buckets side by side."""

    end = b""

    def family(self, metric: Metric, series: list[bytes]) -> bytes:
        if not series:
            return b""  # the format has no head without series
        kind, _ = _KINDS[metric.kind]
        unit = text_field(5, metric.unit) if metric.unit else b""
        head = text_field(1, metric.name) + text_field(2, metric.help) + count_field(3, kind) + unit
        return delimited(head + b"".join(series))

    def series(self, metric: Metric, labels: tuple[str, ...], edges: tuple[float, ...]) -> Show:
        named = b"".join(_label(*pair) for pair in sorted(zip(metric.label_names, labels, strict=True)))
        _, place = _KINDS[metric.kind]
        start = named + content_tag(place)
        write = _histogram_writer(edges) if metric.kind is Kind.HISTOGRAM else _scalar
        return lambda point: _METRIC + delimited(start + delimited(write(point)))


def _label(name: str, value: str) -> bytes:
    return _LABEL + delimited(text_field(1, name) + text_field(2, value))


def _scalar(point: Point) -> bytes:
    assert not isinstance(point.value, Histogram)
    return double_field(1, point.value) + _exemplar(2, point.exemplar)


def _histogram_writer(edges: tuple[float, ...]) -> Show:
    bounds = [double_field(2, edge) for edge in (*edges, math.inf)]

    def write(point: Point) -> bytes:
        histogram = point.value
        assert isinstance(histogram, Histogram)
        counts = list(accumulate(histogram.counts.tolist()))
        parts = [count_field(1, counts[-1]), double_field(2, histogram.total)]
        exemplars = histogram.exemplars or (None,) * len(bounds)
        for count, bound, exemplar in zip(counts, bounds, exemplars, strict=True):
            shown = b"" if exemplar is None else _exemplar(3, exemplar)
            parts.append(_BUCKET + delimited(_CUMULATIVE_COUNT + varint(count) + bound + shown))
        if histogram.native is not None:
            parts.append(_native(histogram.native))
        return b"".join(parts)

    return write


def _native(buckets: NativeBuckets) -> bytes:
    """Write runs of buckets that hold something, and each count as its difference to the one before."""
    zeros = double_field(6, buckets.zero_threshold) + count_field(7, buckets.zero_count)
    head = _SCHEMA + signed(buckets.schema) + zeros
    held = buckets.counts.nonzero()[0]
    if not len(held):
        return head
    deltas = buckets.counts[held]
    deltas[1:] -= deltas[:-1].copy()
    ends = [*((held[1:] - held[:-1] > 1).nonzero()[0] + 1).tolist(), len(held)]  # where in ``held`` a run is over
    return head + _spans(held.tolist(), ends, buckets.first) + _DELTAS + delimited(signed_list(deltas))


def _spans(held: list[int], ends: list[int], first: int) -> bytes:
    spans, after, start = [], -first, 0
    for end in ends:
        spans.append(_SPAN + delimited(_OFFSET + signed(held[start] - after) + _LENGTH + varint(end - start)))
        after, start = held[end - 1] + 1, end
    return b"".join(spans)


def _exemplar(field: int, exemplar: Exemplar | None) -> bytes:
    if exemplar is None or not math.isfinite(exemplar.value):
        return b""
    part, seconds = math.modf(exemplar.at_s)
    ids = _LABEL + delimited(_TRACE_ID + delimited(exemplar.trace_id.encode()))
    ids += _LABEL + delimited(_SPAN_ID + delimited(exemplar.span_id.encode()))
    moment = _SECONDS + varint(int(seconds)) + _NANOS + varint(int(part * 1e9))
    return content_field(field, ids + double_field(2, exemplar.value) + _TIMESTAMP + delimited(moment))
