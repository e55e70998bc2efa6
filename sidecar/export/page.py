"""A page in one format: the bytes of a series that never change are made once, and a scrape formats only the numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from sidecar.export.metric import PREFIX, Metric
from sidecar.export.points import Point
from sidecar.export.table import BY_NAME, METRICS, LeftOut
from sidecar.snapshot import Histogram

Show = Callable[[Point], bytes]
LEFT_OUT = f"{PREFIX}series_left_out"
_LABEL_VALUE = re.compile(r"[\x20-\x7e]{0,128}")  # a lone surrogate in one label makes the whole page fail to encode


class Syntax(Protocol):
    """How one exposition format is written."""

    end: bytes

    def series(self, metric: Metric, labels: tuple[str, ...], edges: tuple[float, ...]) -> Show:
        """Make all of a series but its numbers: the result writes a point with these labels and these edges."""

    def family(self, metric: Metric, series: list[bytes]) -> bytes:
        """Put the head of a metric in front of its series."""


class Page:
    """Every metric of the table, one snapshot at a time. Owned by the thread that renders: one at a time.

    A label set over its metric's cap, with a label outside its closed set or with a value that is not finite is left
    out and counted in ``stethoscope_series_left_out``: one bad number must not cost the page.
    """

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._families = {metric.name: _Family(metric, syntax) for metric in METRICS}

    def render(self, points: Mapping[str, Iterable[Point]]) -> bytes:
        """Points by the name of the metric; those of the series that are left out are filled in here."""
        left_out: Counter[LeftOut] = Counter()
        shown = {name: self._families[name].show(points[name], left_out) for name in BY_NAME if name != LEFT_OUT}
        told = [Point((why,), left_out[why]) for why in LeftOut]
        shown[LEFT_OUT] = self._families[LEFT_OUT].show(told, Counter())
        return b"".join(self._syntax.family(metric, shown[metric.name]) for metric in METRICS) + self._syntax.end


class _Family:
    """The series of one metric. Those of twice its cap are remembered: a reload brings others in the place of some."""

    def __init__(self, metric: Metric, syntax: Syntax) -> None:
        self._metric = metric
        self._syntax = syntax
        self._closed = tuple(frozenset(label.values) for label in metric.labels)
        self._made: dict[tuple[tuple[str, ...], tuple[float, ...]], Show] = {}

    def show(self, points: Iterable[Point], left_out: Counter[LeftOut]) -> list[bytes]:
        shown: list[bytes] = []
        for point in points:
            made = self._shown(point, len(shown))
            if isinstance(made, LeftOut):
                left_out[made] += 1
            else:
                shown.append(made)
        return shown

    def _shown(self, point: Point, before: int) -> bytes | LeftOut:
        show = self._series(point)
        if show is None:
            return LeftOut.LABEL
        number = point.value.total if isinstance(point.value, Histogram) else point.value
        if not math.isfinite(number):
            return LeftOut.VALUE
        return show(point) if before < self._metric.cap else LeftOut.CAP

    def _series(self, point: Point) -> Show | None:
        """Find or make what writes this point; None if one of its labels may not be shown."""
        key = (point.labels, point.value.edges if isinstance(point.value, Histogram) else ())
        made = self._made.get(key)
        if made is None and self._may_show(point.labels):
            if len(self._made) >= 2 * self._metric.cap:
                self._made.clear()
            made = self._made[key] = self._syntax.series(self._metric, *key)
        return made

    def _may_show(self, labels: tuple[str, ...]) -> bool:
        return all(
            (not closed or value in closed) and _LABEL_VALUE.fullmatch(value) is not None
            for closed, value in zip(self._closed, labels, strict=True)
        )
