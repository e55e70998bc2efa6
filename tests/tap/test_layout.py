from __future__ import annotations

from typing import Any

import pytest
import torch

from sidecar.tap.faults import Unsupported
from sidecar.tap.transformers.layout import RowSpan, layout, past_columns


def _mask(*rows: list[int]) -> dict[str, Any]:
    return {"attention_mask": torch.tensor(rows)}


def _positions(*rows: list[int]) -> dict[str, Any]:
    return {"position_ids": torch.tensor(rows)}


def test_without_mask_and_positions_every_column_is_real() -> None:
    assert layout(2, 3, 5, {}) == [RowSpan(0, 3, 5)] * 2


def test_padding_on_either_side_is_nobodys_row() -> None:
    table = layout(3, 4, 0, _mask([0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]))
    assert table == [RowSpan(2, 2, 0), RowSpan(0, 3, 0), RowSpan(0, 4, 0)]


def test_cached_columns_count_by_the_mask_and_not_by_the_cache() -> None:
    mask = _mask([0, 0, 1, 1, 1], [1, 1, 1, 1, 0])
    assert past_columns(2, mask) == 3
    assert layout(2, 2, 3, mask) == [RowSpan(0, 2, 1), RowSpan(0, 1, 3)]


def test_a_row_of_padding_alone_has_no_tokens() -> None:
    assert layout(2, 2, 0, _mask([0, 0], [1, 1]))[0].length == 0


def test_a_mask_with_holes_is_not_guessed_at() -> None:
    with pytest.raises(Unsupported):
        layout(1, 3, 0, _mask([1, 0, 1]))


def test_position_ids_show_left_padding() -> None:
    table = layout(3, 4, 0, _positions([0, 0, 0, 1], [0, 1, 2, 3], [6, 7, 8, 9]))
    assert table == [RowSpan(2, 2, 0), RowSpan(0, 4, 0), RowSpan(0, 4, 6)]


def test_one_row_of_position_ids_stands_for_all() -> None:
    assert layout(2, 2, 0, _positions([4, 5])) == [RowSpan(0, 2, 4)] * 2


@pytest.mark.parametrize("row", [[0, 1, 0, 1], [3, 2, 1, 0], [0, 1, 1, 2], [1, 1, 2, 3]])
def test_position_ids_that_do_not_count_up_are_not_guessed_at(row: list[int]) -> None:
    with pytest.raises(Unsupported):
        layout(1, 4, 0, _positions(row))


def test_a_mask_of_another_shape_needs_position_ids() -> None:
    mask = {"attention_mask": torch.ones(1, 1, 4, 4)}
    with pytest.raises(Unsupported):
        layout(1, 4, 0, mask)
    assert layout(1, 4, 0, mask | _positions([0, 0, 1, 2])) == [RowSpan(1, 3, 0)]
