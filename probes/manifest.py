"""The manifest of an artifact: what a direction reads, where, how well, on what evidence. Strict: an unknown key is an error."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidecar.types import Evidence, TapPoint

SCHEMA = "stethoscope.artifact/1"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Text = Annotated[str, Field(max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Kind(StrEnum):
    """What the directions are for."""

    LINEAR_PROBE = "linear_probe"
    POSITIVE_CONTROL = "positive_control"


class TokenSpan(StrEnum):
    """Which rows of a request a signal reads."""

    PROMPT = "prompt"
    GENERATED = "generated"
    ALL = "all"


class AggregationKind(StrEnum):
    """How a request's readings become its score; each has a streaming form that costs O(1) a token."""

    MEAN = "mean"
    LAST = "last"
    EMA = "ema"
    MAX_ROLLING_MEAN = "max_rolling_mean"


class Aggregation(_Strict):
    """``window`` (tokens): the rolling mean's length; for EMA, alpha = 2 / (window + 1). Unused by mean and last."""

    kind: AggregationKind
    window: Annotated[int, Field(ge=1, le=64)] = 10


class FeatureContract(_Strict):
    """What a row must be for the direction to mean what it meant in training."""

    hook_point: Text
    width: Annotated[int, Field(ge=1, le=65536)]
    norm: Literal["none"] = "none"
    token_span: TokenSpan
    skip_positions: Annotated[int, Field(ge=0, le=64)] = 1
    chat_template_digest: Digest | Literal[""] = ""


class ModelBinding(_Strict):
    """The model that the artifact was made on. Digests are fingerprints as the tap computes them."""

    name: Text
    architecture: Text
    layers: Annotated[int, Field(ge=1, le=10000)]
    weights_digest: Digest
    tokenizer_digest: Digest
    dtype: Text
    quantisation: Text = "none"
    engine: Text


class Calibration(_Strict):
    """probability = sigmoid(scale * aggregated reading + offset)."""

    kind: Literal["platt", "temperature", "none"]
    scale: Finite = 1.0
    offset: Finite = 0.0


class Threshold(_Strict):
    """Fires above ``probability``. Chosen for ``target_fpr`` on ``benign_rows``; the interval is Clopper-Pearson, 95 %."""

    probability: Share
    target_fpr: Share
    measured_fpr: Share
    fpr_interval: tuple[Share, Share]
    benign_rows: Annotated[int, Field(ge=0)]
    certified: bool


class ControlRange(_Strict):
    """Readings of the positive control lie within [low, high] for all but ``outside`` of real rows."""

    low: Finite
    high: Finite
    outside: Share

    @model_validator(mode="after")
    def _ordered(self) -> ControlRange:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class TrainingData(_Strict):
    """Where the rows came from; the rows themselves are never kept."""

    name: Text
    digest: Digest
    rows: Annotated[int, Field(ge=1)]
    licence: Text


class Quality(_Strict):
    """Held-out quality beside what plain text features reach on the same rows. Intervals are 95 % bootstrap."""

    test_rows: Annotated[int, Field(ge=1)]
    auroc: Share
    auroc_interval: tuple[Share, Share]
    baselines: dict[str, Share]
    best_baseline: str
    gain: Finite
    gain_interval: tuple[Finite, Finite]
    shuffled_label_auroc: Share
    verdict: Text


class Manifest(_Strict):
    """Everything that must travel with a direction."""

    schema_: Annotated[Literal["stethoscope.artifact/1"], Field(alias="schema")]
    kind: Kind
    name: Name
    version: Annotated[str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")]
    description: Text
    positive_label: Text = ""
    negative_label: Text = ""
    tap_point: str
    feature_contract: FeatureContract
    model: ModelBinding
    evidence: Evidence = Evidence.UNVERIFIED
    training_data: TrainingData
    licence: Text
    content_digest: Digest
    aggregation: Aggregation | None = None
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    quality: Quality | None = None
    control_range: ControlRange | None = None
    signature: Text | None = None

    @field_validator("tap_point")
    @classmethod
    def _tap_point_parses(cls, value: str) -> str:
        TapPoint.parse(value)
        return value

    @model_validator(mode="after")
    def _complete_for_its_kind(self) -> Manifest:
        probe = self.kind is Kind.LINEAR_PROBE
        wanted = ["aggregation", "calibration", "threshold", "quality"] if probe else ["control_range"]
        missing = [name for name in wanted if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a {self.kind.value} needs {', '.join(missing)}")
        if TapPoint.parse(self.tap_point).layer >= self.model.layers:
            raise ValueError("tap_point lies beyond the model's last block")
        if self.evidence is Evidence.STALE:
            raise ValueError("stale is found when an artifact meets a model, never written down")
        return self

    @property
    def where(self) -> TapPoint:
        return TapPoint.parse(self.tap_point)
