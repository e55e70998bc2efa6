"""What an activation store says of itself: without it, its numbers mean nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from probes.manifest import Digest, ModelBinding, Text, TokenSpan
from sidecar.types import TapPoint

StateDtype = Literal["float32", "float16", "bfloat16"]


class StoreFacts(BaseModel):
    """The feature contract and the origin of every row. Strict, and never changed once written.

    width: of the residual stream. widths: of each tap point's rows, by name; concatenated heads may be wider or narrower.
    hook_points: by tap point, where in the model the rows were taken, in words. outside: data sets for evaluation alone.
    truncated: how many texts were cut at max_tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelBinding
    width: Annotated[int, Field(ge=1, le=65536)]
    tap_points: Annotated[tuple[str, ...], Field(min_length=1)]
    widths: dict[str, Annotated[int, Field(ge=1)]]
    hook_points: dict[str, Text]
    norm: Literal["none"] = "none"
    skip_positions: Annotated[int, Field(ge=0, le=64)] = 1
    token_span: TokenSpan = TokenSpan.PROMPT
    chat: bool
    chat_template_digest: Digest | Literal[""] = ""
    max_tokens: Annotated[int, Field(ge=1)]
    truncated: Annotated[int, Field(ge=0)] = 0
    state_dtype: StateDtype = "float32"
    data_name: Text
    data_digest: Digest
    data_licence: Text = "not stated"
    positive_label: Text = "positive"
    negative_label: Text = "negative"
    outside: tuple[str, ...] = ()

    @field_validator("tap_points")
    @classmethod
    def _are_tap_points(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len({TapPoint.parse(name) for name in names}) != len(names):
            raise ValueError("a tap point is named twice")
        return names

    @model_validator(mode="after")
    def _every_tap_point_is_described(self) -> StoreFacts:
        if set(self.tap_points) != set(self.widths) or set(self.tap_points) != set(self.hook_points):
            raise ValueError("widths and hook_points must name every tap point")
        return self
