"""The manifest itself: what a direction reads, where, how well, on what evidence. Strict: an unknown key is an error."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from probes.manifest.aggregation import Aggregation
from probes.manifest.binding import Admission, FeatureContract, ModelBinding
from probes.manifest.fields import Digest, Finite, Name, Sealed, Share, Strict, Text
from probes.manifest.findings import OF_VALIDATION, GateResult, Quality, Validation
from probes.manifest.firing import Calibration, Threshold
from sidecar.types import Evidence, TapPoint

SCHEMA = "stethoscope.artifact/1"


class Kind(StrEnum):
    """What the directions are for."""

    LINEAR_PROBE = "linear_probe"
    POSITIVE_CONTROL = "positive_control"


class ControlRange(Strict):
    """Readings of the positive control lie within [low, high] for all but ``outside`` of real rows."""

    low: Finite
    high: Finite
    outside: Share

    @model_validator(mode="after")
    def _ordered(self) -> ControlRange:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class TrainingData(Strict):
    """Where the rows came from; the rows themselves are never kept."""

    name: Text
    digest: Digest
    rows: Annotated[int, Field(ge=1)]
    licence: Text


class Manifest(Sealed):
    """Everything that must travel with a direction.

    also: further tap points of a probe that reads several layers at once; a row's reading is the sum over all of them.
    """

    schema_: Annotated[Literal["stethoscope.artifact/1"], Field(alias="schema")]
    kind: Kind
    name: Name
    version: Annotated[str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")]
    description: Text
    positive_label: Text = ""
    negative_label: Text = ""
    tap_point: str
    also: Annotated[tuple[str, ...], Field(max_length=7)] = ()
    feature_contract: FeatureContract
    model: ModelBinding
    admitted: Annotated[tuple[Admission, ...], Field(max_length=16)] = ()
    evidence: Evidence = Evidence.UNVERIFIED
    training_data: TrainingData
    licence: Text
    aggregation: Aggregation | None = None
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    quality: Quality | None = None
    control_range: ControlRange | None = None
    validation: Validation | None = None
    gates: Annotated[tuple[GateResult, ...], Field(max_length=64)] | None = None

    @field_validator("tap_point")
    @classmethod
    def _tap_point_parses(cls, value: str) -> str:
        TapPoint.parse(value)
        return value

    @field_validator("also")
    @classmethod
    def _tap_points_parse(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            TapPoint.parse(value)
        return values

    @model_validator(mode="after")
    def _complete_for_its_kind(self) -> Manifest:
        probe = self.kind is Kind.LINEAR_PROBE
        wanted = ["aggregation", "calibration", "threshold", "quality"] if probe else ["control_range"]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a {self.kind.value} needs {', '.join(missing)}")
        if not all(map(self.model.has, self.everywhere)):
            raise ValueError("a tap point lies beyond the model's last block")
        if len({where.stack for where in self.everywhere}) > 1:
            raise ValueError("an encoder and a decoder have no rows in common that a probe could read")
        if len(set(self.everywhere)) != len(self.everywhere) or (self.also and not probe):
            raise ValueError("only a probe reads several tap points, and each of them once")
        if self.evidence is Evidence.STALE:
            raise ValueError("stale is found when an artifact meets a model, never written down")
        return self

    @property
    def failed(self) -> tuple[str, ...]:
        """The gates of quality that it did not pass: with any, it was packed as failed, and is shown but never flags."""
        return tuple(gate.name for gate in self.gates or () if not gate.passed and gate.name not in OF_VALIDATION)

    @property
    def where(self) -> TapPoint:
        return TapPoint.parse(self.tap_point)

    @property
    def everywhere(self) -> tuple[TapPoint, ...]:
        """Every tap point that is read, `where` first."""
        return (self.where, *(TapPoint.parse(name) for name in self.also))

    @property
    def columns(self) -> int:
        """How many directions there are at each tap point."""
        return 1 if self.aggregation is None else self.aggregation.columns
