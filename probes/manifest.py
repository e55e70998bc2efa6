"""The manifest of an artifact: what a direction reads, where, how well, on what evidence. Strict: an unknown key is an error."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from math import isfinite
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sidecar.types import Evidence, Stack, TapPoint

SCHEMA = "stethoscope.artifact/1"
KNOTS = 64  # of an isotonic calibration: more than the rows that it is fitted on can tell apart
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
    """How a request's readings become its score; each has a streaming form that costs O(1) a token. Defined in `probes.pooling`."""

    MEAN = "mean"
    LAST = "last"
    EMA = "ema"
    MAX_EMA = "max_ema"
    MAX_ROLLING_MEAN = "max_rolling_mean"
    COHERENCE = "coherence"
    ATTENTION = "attention"
    MAX_ROLLING_ATTENTION = "max_rolling_attention"
    MULTIMAX = "multimax"


_ATTENDING = frozenset({AggregationKind.ATTENTION, AggregationKind.MAX_ROLLING_ATTENTION})


class Aggregation(_Strict):
    """``window`` (tokens): the length of rolling windows; for the exponential means, alpha = 2 / (window + 1). Unused by others.

    ``agree``: of the window's tokens, how many must read high; for coherence only. ``heads``: directions of a multimax.
    """

    kind: AggregationKind
    window: Annotated[int, Field(ge=1, le=64)] = 10
    agree: Annotated[int, Field(ge=1, le=64)] = 1
    heads: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Aggregation:
        if self.agree > self.window:
            raise ValueError("no more tokens can agree than the window has")
        if self.heads > 1 and self.kind is not AggregationKind.MULTIMAX:
            raise ValueError("only a multimax has several heads")
        return self

    @property
    def columns(self) -> int:
        """How many directions it takes: value and query for attention, one a head for multimax, one for all others."""
        return 2 if self.kind in _ATTENDING else self.heads


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
    encoder_layers: Annotated[int, Field(ge=1, le=10000)] | None = None  # if it has an encoder beside its decoder

    def has(self, where: TapPoint) -> bool:
        """Whether it has such a block."""
        return where.layer < (self.layers if where.stack is Stack.DECODER else self.encoder_layers or 0)


class Calibration(_Strict):
    """probability = sigmoid(scale * score + offset); if isotonic, along the knots (see `probes.isotonic`).

    knots: (score, probability), of an isotonic calibration alone; scores rise, and probabilities never fall.
    """

    kind: Literal["platt", "temperature", "isotonic", "none"]
    scale: Finite = 1.0
    offset: Finite = 0.0
    knots: Annotated[tuple[tuple[Finite, Share], ...], Field(min_length=2, max_length=KNOTS)] | None = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Calibration:
        if (self.kind == "isotonic") != (self.knots is not None):
            raise ValueError("an isotonic calibration has knots, and no other has")
        if self.knots is not None and (self.scale, self.offset) != (1.0, 0.0):
            raise ValueError("along knots there is nothing to scale or to shift")
        return self

    @field_validator("knots")
    @classmethod
    def _never_falling(cls, knots: tuple[tuple[float, float], ...] | None) -> tuple[tuple[float, float], ...] | None:
        for (low, least), (high, most) in pairwise(knots or ()):
            if not low < high or most < least:
                raise ValueError("scores of knots must rise, and their probabilities must not fall")
            if not (isfinite(high - low) and isfinite((most - least) / (high - low))):
                raise ValueError("knots are too far apart, or too close together, to go straight between them")
        return knots


class LengthBucket(_Strict):
    """Requests of which at least ``min_tokens`` tokens were read fire above ``probability``."""

    min_tokens: Annotated[int, Field(ge=2)]
    probability: Share
    measured_fpr: Share
    fpr_interval: tuple[Share, Share]
    benign_rows: Annotated[int, Field(ge=0)]
    certified: bool


class Threshold(_Strict):
    """Fires above ``probability``. Chosen for ``target_fpr`` on ``benign_rows``; the interval is Clopper-Pearson, 95 %.

    buckets: other thresholds for longer requests, by rising length: the longer a text, the higher its highest reading.
    """

    probability: Share
    target_fpr: Share
    measured_fpr: Share
    fpr_interval: tuple[Share, Share]
    benign_rows: Annotated[int, Field(ge=0)]
    certified: bool
    buckets: Annotated[tuple[LengthBucket, ...], Field(max_length=8)] = ()

    @model_validator(mode="after")
    def _rising(self) -> Threshold:
        lengths = [bucket.min_tokens for bucket in self.buckets]
        if any(low >= high for low, high in pairwise(lengths)):
            raise ValueError("buckets must rise in length")
        return self


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


# Gates that ask whether the model uses what is read. One that is not passed makes the evidence less, and the probe no worse.
OF_VALIDATION = frozenset({"behaves", "needed", "sufficient", "erased"})


class GateResult(_Strict):
    """One thing that was required before release, and whether it was so."""

    name: Text
    passed: bool
    text: Text


class InterventionResult(_Strict):
    """What changing the direction did to the model's own behaviour; p: its place among random directions."""

    name: Text
    effect: Finite
    interval: tuple[Finite, Finite]
    p_value: Share
    passed: bool


class Validation(_Strict):
    """Whether the model uses what is read. behaviour: what was measured, and its unit."""

    behaviour: Text
    interventions: Annotated[tuple[InterventionResult, ...], Field(max_length=32)]


class Manifest(_Strict):
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
    evidence: Evidence = Evidence.UNVERIFIED
    training_data: TrainingData
    licence: Text
    content_digest: Digest
    aggregation: Aggregation | None = None
    calibration: Calibration | None = None
    threshold: Threshold | None = None
    quality: Quality | None = None
    control_range: ControlRange | None = None
    validation: Validation | None = None
    gates: Annotated[tuple[GateResult, ...], Field(max_length=64)] | None = None
    signature: Text | None = None

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
