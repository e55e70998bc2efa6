"""The two text formats: Prometheus 0.0.4, and OpenMetrics 1.0, which has units and exemplars."""

from __future__ import annotations

import math
from itertools import accumulate, chain

from sidecar.export.metric import Kind, Metric
from sidecar.export.page import Show
from sidecar.export.points import Point
from sidecar.snapshot import Exemplar, Histogram


class Text:
    """Lines of text. What never changes of a series is one template, filled in a single step."""

    def __init__(self, *, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self.end = b"# EOF\n" if openmetrics else b""
        self._heads: dict[str, bytes] = {}

    def family(self, metric: Metric, series: list[bytes]) -> bytes:
        head = self._heads.get(metric.name)
        if head is None:
            head = self._heads[metric.name] = self._head(metric)
        return head + b"".join(series)

    def _head(self, metric: Metric) -> bytes:
        name, kind, text = metric.name, metric.kind.value, metric.help.replace("\\", r"\\").replace("\n", r"\n")
        if not self._openmetrics:
            kind = "gauge" if metric.kind is Kind.INFO else kind
            return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
        name = name.removesuffix({Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(metric.kind, ""))
        text = text.replace('"', r"\"")
        unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
        return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{unit}".encode()

    def series(self, metric: Metric, labels: tuple[str, ...], edges: tuple[float, ...]) -> Show:
        named = dict(zip(metric.label_names, labels, strict=True))
        if metric.kind is Kind.HISTOGRAM:
            return self._histogram(metric.name, named, edges)
        template = _start(metric.name, named) + b"%b%b\n"
        exemplars = self._openmetrics and metric.kind is Kind.COUNTER
        return lambda point: template % (_number(point.value), _exemplar(point.exemplar) if exemplars else b"")

    def _histogram(self, name: str, named: dict[str, str], edges: tuple[float, ...]) -> Show:
        bounds = (*(repr(float(edge)) for edge in edges), "+Inf")
        starts = [_start(f"{name}_bucket", {**named, "le": bound}) for bound in bounds]
        tail = _start(f"{name}_count", named) + b"%d\n" + _start(f"{name}_sum", named) + b"%b\n"
        if not self._openmetrics:
            plain = b"%d\n".join(starts) + b"%d\n" + tail
            return lambda point: plain % _counts(point)
        rich = b"%d%b\n".join(starts) + b"%d%b\n" + tail
        return lambda point: rich % _counts_with_exemplars(point)


def _start(name: str, labels: dict[str, str]) -> bytes:
    """Begin a line, up to its number, as part of a template; labels in the order of their names."""
    inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}} ".replace("%", "%%").encode() if labels else f"{name} ".encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"")  # a line break is no label of ours


def _number(value: float | Histogram) -> bytes:
    assert not isinstance(value, Histogram)
    return b"%d" % value if isinstance(value, int) else repr(float(value)).encode()


def _counts(point: Point) -> tuple[object, ...]:
    assert isinstance(point.value, Histogram)
    cumulative = tuple(accumulate(point.value.counts.tolist()))
    return (*cumulative, cumulative[-1], _number(point.value.total))


def _counts_with_exemplars(point: Point) -> tuple[object, ...]:
    assert isinstance(point.value, Histogram)
    *cumulative, count, total = _counts(point)
    shown = map(_exemplar, point.value.exemplars or (None,) * len(cumulative))
    return (*chain.from_iterable(zip(cumulative, shown, strict=True)), count, total)


def _exemplar(exemplar: Exemplar | None) -> bytes:
    if exemplar is None or not math.isfinite(exemplar.value):
        return b""
    ids = f'trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"'
    return f" # {{{ids}}} {float(exemplar.value)!r} {float(exemplar.at_s)!r}".encode()
