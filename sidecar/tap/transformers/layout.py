"""Which columns of a forward pass are real tokens, and at which positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sidecar.tap.faults import Unsupported

IntArray = npt.NDArray[np.int64]


class RowSpan(NamedTuple):
    """Columns ``column .. column + length - 1`` of one row are real, at positions ``first .. first + length - 1``."""

    column: int
    length: int
    first: int


def past_columns(columns: int, kwargs: dict[str, Any]) -> int:
    """How many columns the cache holds already, without waiting for a device where that can be helped."""
    mask = _two_dimensional(kwargs.get("attention_mask"))
    if mask is not None:
        return int(mask.shape[1]) - columns
    cache = kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def layout(rows: int, columns: int, past: int, kwargs: dict[str, Any]) -> list[RowSpan]:
    """One span per row of a [rows, columns] forward pass on top of ``past`` cached columns.

    The 2-D attention mask decides; where there is none, the position ids; where there are none, every column is real.
    Raises Unsupported if a row's real columns are not one piece, or cannot be known. Reads tensors: waits for a device.
    """
    mask = _two_dimensional(kwargs.get("attention_mask"))
    if mask is not None:
        return _by_mask(rows, columns, past, mask)
    positions = _two_dimensional(kwargs.get("position_ids"))
    if positions is not None:
        return _by_positions(rows, columns, positions)
    if kwargs.get("attention_mask") is not None:
        raise Unsupported("an attention mask that is not 2-D, without position ids")
    return [RowSpan(0, columns, past)] * rows


def _two_dimensional(value: Any) -> torch.Tensor | None:
    return value if isinstance(value, torch.Tensor) and value.ndim == 2 else None


def _by_mask(rows: int, columns: int, past: int, mask: torch.Tensor) -> list[RowSpan]:
    real = np.broadcast_to(mask.detach().to("cpu").numpy() != 0, (rows, past + columns))
    cached = real[:, :past].sum(axis=1)
    new = real[:, past:]
    counts = new.sum(axis=1)
    starts = new.argmax(axis=1)
    ends = columns - new[:, ::-1].argmax(axis=1)
    if bool(np.any((counts > 0) & (ends - starts != counts))):
        raise Unsupported("an attention mask with holes")
    return [RowSpan(*map(int, row)) for row in zip(starts, counts, cached, strict=True)]


def _by_positions(rows: int, columns: int, positions: torch.Tensor) -> list[RowSpan]:
    """Left padding shows as position 0 repeated: the last 0 is the first token."""
    table = np.broadcast_to(positions.detach().to("cpu").numpy(), (rows, columns)).astype(np.int64)
    starts = np.where(table[:, 0] == 0, (table == 0).cumprod(axis=1).sum(axis=1) - 1, 0)
    firsts = table[np.arange(rows), starts]
    wanted = firsts[:, None] + np.maximum(np.arange(columns)[None, :] - starts[:, None], 0)
    if not bool(np.array_equal(wanted, table)):
        raise Unsupported("position ids that do not count up")
    return [RowSpan(*map(int, row)) for row in zip(starts, columns - starts, firsts, strict=True)]
