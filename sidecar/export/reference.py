"""The reference of every metric, made from the table: ``python -m sidecar.export.reference > docs/metrics.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sidecar.export.metric import Kind, Label, Metric
from sidecar.export.table import METRICS

_INTRODUCTION = """\
# Metrics

<!-- Made by `python -m sidecar.export.reference`; a test compares. Edit sidecar/export/table.py instead. -->

Served at `/metrics` in the format that the scraper's `Accept` header prefers: Prometheus text, OpenMetrics, or protobuf.
The last two add exemplars with `trace_id` and `span_id` to the buckets of the score histograms and to the detections.
Protobuf adds native histograms beside the classic buckets: the same observations in buckets 9 % wide (schema 3), which
merge over sidecars by `sum(rate(...))`. `deploy/prometheus/prometheus.yml` says what each version of Prometheus needs
to ask for them.

Every scrape shows one moment, in which for step batches and for rows alike

    received = scored + sum(dropped) + sum(rejected) + in_flight

A value of a label comes from a closed set, or from a name that was validated when an artifact or a tap point was read;
never from a request. "Series" is the most label sets that a metric ever shows. What lies beyond it is left out and
counted in `stethoscope_series_left_out`. A histogram has a line per bucket for each label set, and `_sum` and `_count`.

| Metric | Type | Labels | Series | Meaning |
|---|---|---|---:|---|
"""


def markdown() -> str:
    """Write the reference as one Markdown page."""
    return _INTRODUCTION + "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    for metric in METRICS:
        labels = "; ".join(map(_label, metric.labels)) or "none"
        yield f"| `{metric.name}` | {_type(metric)} | {labels} | {metric.cap} | {metric.help} |"


def _type(metric: Metric) -> str:
    return "gauge (info)" if metric.kind is Kind.INFO else metric.kind.value


def _label(label: Label) -> str:
    return f"`{label.name}`: {', '.join(label.values) or label.source}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
