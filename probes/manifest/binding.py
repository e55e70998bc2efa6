"""Where a direction is at home: on which model, and what a row must be."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from probes.manifest.fields import Digest, Strict, Text
from sidecar.types import Stack, TapPoint


class TokenSpan(StrEnum):
    """Which rows of a request a signal reads."""

    PROMPT = "prompt"
    GENERATED = "generated"
    ALL = "all"


class FeatureContract(Strict):
    """What a row must be for the direction to mean what it meant in training."""

    hook_point: Text
    width: Annotated[int, Field(ge=1, le=65536)]
    norm: Literal["none"] = "none"
    token_span: TokenSpan
    skip_positions: Annotated[int, Field(ge=0, le=64)] = 1
    chat_template_digest: Digest | Literal[""] = ""


class ServingConfig(NamedTuple):
    """How a model is served. Under another of these a direction still means something, but its threshold may not hold."""

    weights_digest: str
    dtype: str
    quantisation: str
    engine: str


class ModelBinding(Strict):
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

    @property
    def serving(self) -> ServingConfig:
        return ServingConfig(self.weights_digest, self.dtype, self.quantisation, self.engine)

    def has(self, where: TapPoint) -> bool:
        """Whether it has such a block."""
        return where.layer < (self.layers if where.stack is Stack.DECODER else self.encoder_layers or 0)


class Admission(Strict):
    """Another serving config at which `probes gate` passed: there the artifact counts as at home.

    rows: texts that were compared; flips: how many of them are decided otherwise.
    """

    weights_digest: Digest
    dtype: Text
    quantisation: Text = "none"
    engine: Text
    rows: Annotated[int, Field(ge=1)]
    flips: Annotated[int, Field(ge=0)]

    @property
    def serving(self) -> ServingConfig:
        return ServingConfig(self.weights_digest, self.dtype, self.quantisation, self.engine)
