"""How a request's readings become its score."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from probes.manifest.fields import Strict


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


class Aggregation(Strict):
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
