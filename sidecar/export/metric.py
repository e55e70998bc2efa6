"""What a metric is, and the forms that most of them have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sidecar.types import Evidence

PREFIX = "stethoscope_"
TAP_POINTS = 64
BOOLEAN = ("true", "false")
EVIDENCE = tuple(Evidence)


class Kind(StrEnum):
    """The types of the exposition format that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Label:
    """A label: either a closed set of values, or names that were validated when an artifact or a tap point was read."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed. ``cap`` bounds its label sets; a histogram has a line per bucket for each."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    cap: int = 1
    unit: str = ""

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)


VERSION = Label("version", source="version in the artifact's manifest")
TAP_POINT = Label("tap_point", source="tap points of the plan")

By = tuple[tuple[Label, ...], int]  # labels, and how many label sets they can make
ALONE: By = ((), 1)


def closed(name: str, values: type[StrEnum] | tuple[str, ...]) -> By:
    label = Label(name, tuple(str(value) for value in values))
    return (label,), len(label.values)


def counter(name: str, text: str, by: By = ALONE) -> Metric:
    return Metric(f"{PREFIX}{name}_total", Kind.COUNTER, text, *by)


def gauge(name: str, text: str, by: By = ALONE, *, unit: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", Kind.GAUGE, text, *by, unit)


def histogram(name: str, text: str, by: By = ALONE, *, unit: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", Kind.HISTOGRAM, text, *by, unit)


BY_TAP_POINT: By = ((TAP_POINT,), TAP_POINTS)
