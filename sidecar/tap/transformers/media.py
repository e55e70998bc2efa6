"""Where images and the like stand in a sequence: the ids that a multimodal model's config puts in their place say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch

from sidecar.tap.transformers.batches import Batch
from sidecar.tap.transformers.layout import RowSpan
from sidecar.types import MediaSpan, Medium


def media_tokens(config: Any) -> Mapping[int, Medium]:
    """Which ids stand for which medium; empty for a model of text."""
    names = ((medium, f"{medium.value}_token_{end}") for medium in Medium for end in ("id", "index"))
    found = ((medium, getattr(config, name, None)) for medium, name in names)
    return {token: medium for medium, token in found if isinstance(token, int)}


def label_media(tokens: Mapping[int, Medium], batch: Batch, table: list[RowSpan], ids: Any) -> None:
    """Book the pieces among the ids [rows, columns] of a pass over a prompt. Reads them: waits for a device."""
    if not tokens or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
        return
    for request, (column, length, first), row in zip(batch.requests, table, ids.tolist(), strict=True):
        request.media.extend(_pieces(tokens, row[column : column + length], first))


def _pieces(tokens: Mapping[int, Medium], ids: list[int], position: int) -> Iterator[MediaSpan]:
    """Runs of one medium among ids that begin at ``position``."""
    for medium, run in groupby(ids, tokens.get):
        length = len(list(run))
        if medium is not None:
            yield MediaSpan(medium, position, length)
        position += length
