"""Snapshots as Prometheus text and as OpenMetrics."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as render_text
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as WireExemplar

from sidecar.export.points import READERS, Point, Reader
from sidecar.export.shared import Shared
from sidecar.export.table import BY_NAME, METRICS, PREFIX, Kind, LeftOut, Metric
from sidecar.snapshot import Exemplar, Histogram, Snapshot

_LABEL_VALUE = re.compile(r"[\x20-\x7e]{0,128}")  # a lone surrogate in one label makes the whole page fail to encode
_LEFT_OUT = f"{PREFIX}series_left_out"
_BUILD_INFO = f"{PREFIX}build_info"


class MetricsCollector(Collector):
    """Turns a snapshot into metric families, in the order of the table.

    source: gives the snapshot, and may take the pipeline's lock to copy it; nothing is locked while it is rendered.
    A label set over its metric's cap, with a label outside its closed set or with a value that is not finite is left
    out and counted in ``stethoscope_series_left_out``: one bad number must not cost the page.
    """

    def __init__(self, source: Callable[[], Snapshot], *, version: str) -> None:
        self._source = source
        self._text = Shared(self._render_text)
        self._openmetrics = Shared(self._render_openmetrics)
        self._readers: dict[str, Reader] = {**READERS, _BUILD_INFO: lambda _: (Point((version,), 1),)}

    def describe(self) -> Iterable[Family]:
        """Name the families without samples, so that a registry need not take a snapshot to know them."""
        return (_family(metric) for metric in METRICS)

    def collect(self) -> Iterator[Family]:
        """Take one snapshot and yield every family of the table."""
        snapshot = self._source()
        left_out: Counter[LeftOut] = Counter()
        families = {
            metric.name: _filled(metric, self._readers[metric.name](snapshot), left_out)
            for metric in METRICS
            if metric.name != _LEFT_OUT
        }
        points = [Point((why,), left_out[why]) for why in LeftOut]
        families[_LEFT_OUT] = _filled(BY_NAME[_LEFT_OUT], points, Counter())
        return (families[metric.name] for metric in METRICS)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type: OpenMetrics with exemplars if the header prefers it, else text.

        Threads that ask at the same time share a page, whose snapshot is taken after each of them asked.
        """
        if prefers_openmetrics(accept):
            return self._openmetrics.get(), openmetrics.CONTENT_TYPE_LATEST
        return self._text.get(), CONTENT_TYPE_PLAIN_0_0_4

    def _render_text(self) -> bytes:
        return render_text(self)

    def _render_openmetrics(self) -> bytes:
        page: bytes = openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]  # its module has no types
        return page


def prefers_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0 is accepted and at least as welcome as plain text.

    The answer is one of two fixed formats: neither a version nor an escaping is echoed from the header.

    >>> prefers_openmetrics("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    True
    >>> prefers_openmetrics("text/plain, */*;q=0.1")
    False
    """
    rich, plain = 0.0, 0.0
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        settings = dict(part.split("=", 1) for part in parameters if "=" in part)
        if kind == "application/openmetrics-text" and settings.get("version", "1.0.0") == "1.0.0":
            rich = max(rich, _quality(settings))
        elif kind == "text/plain":
            plain = max(plain, _quality(settings))
    return rich > 0 and rich >= plain


def _quality(settings: dict[str, str]) -> float:
    try:
        quality = float(settings.get("q", "1"))
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


def _family(metric: Metric) -> Family:
    match metric.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
        case Kind.GAUGE:
            return GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names, unit=metric.unit)
        case Kind.INFO:
            return InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=metric.label_names)


def _filled(metric: Metric, points: Iterable[Point], left_out: Counter[LeftOut]) -> Family:
    family = _family(metric)
    shown = 0
    for point in points:
        why = _fault(metric, point)
        if why is None and shown == metric.cap:
            why = LeftOut.CAP
        if why is not None:
            left_out[why] += 1
            continue
        shown += 1
        _add(family, metric, point)
    return family


def _fault(metric: Metric, point: Point) -> LeftOut | None:
    for label, value in zip(metric.labels, point.labels, strict=True):
        if label.values and value not in label.values:
            return LeftOut.LABEL
        if not _LABEL_VALUE.fullmatch(value):
            return LeftOut.LABEL
    number = point.value.total if isinstance(point.value, Histogram) else point.value
    return None if math.isfinite(number) else LeftOut.VALUE


def _add(family: Family, metric: Metric, point: Point) -> None:
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(point.value, Histogram)
        family.add_metric(point.labels, _buckets(point.value), point.value.total)
        return
    assert not isinstance(point.value, Histogram)
    if isinstance(family, CounterMetricFamily):
        family.add_metric(point.labels, point.value, exemplar=_exemplar(point.exemplar))
    elif isinstance(family, InfoMetricFamily):
        family.add_metric((), dict(zip(metric.label_names, point.labels, strict=True)))
    elif isinstance(family, GaugeMetricFamily):
        family.add_metric(point.labels, point.value)


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, WireExemplar]]:
    cumulative = np.cumsum(histogram.counts)
    bounds = (*histogram.edges, math.inf)
    exemplars = histogram.exemplars or (None,) * len(bounds)
    buckets: list[tuple[str, float] | tuple[str, float, WireExemplar]] = []
    for bound, count, exemplar in zip(bounds, cumulative, exemplars, strict=True):
        wire = _exemplar(exemplar)
        name = "+Inf" if bound == math.inf else str(float(bound))
        buckets.append((name, int(count)) if wire is None else (name, int(count), wire))
    return buckets


def _exemplar(exemplar: Exemplar | None) -> WireExemplar | None:
    if exemplar is None or not math.isfinite(exemplar.value):
        return None
    return WireExemplar({"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}, exemplar.value, exemplar.at_s)
