"""From a score to a probability, and from that to a decision."""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from probes.manifest.fields import Finite, Share, Strict

KNOTS = 64  # of an isotonic calibration: more than the rows that it is fitted on can tell apart


class Calibration(Strict):
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


class LengthBucket(Strict):
    """Requests of which at least ``min_tokens`` tokens were read fire above ``probability``."""

    min_tokens: Annotated[int, Field(ge=2)]
    probability: Share
    measured_fpr: Share
    fpr_interval: tuple[Share, Share]
    benign_rows: Annotated[int, Field(ge=0)]
    certified: bool


class Threshold(Strict):
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
