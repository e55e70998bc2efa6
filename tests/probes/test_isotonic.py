"""A table of probabilities never falls, is exact where it is flat, and is refused if it is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from probes.isotonic import along, last_at_most
from probes.manifest import KNOTS, Calibration
from tests.probes.tables import SCORES, tables


@given(table=tables(), scores=st.lists(SCORES, min_size=1, max_size=50))
def test_it_never_falls_and_stays_within_its_ends(table: np.ndarray, scores: list[float]) -> None:
    told = along(table, np.sort(scores))
    assert (np.diff(told) >= 0).all()
    assert told.min() >= table[0, 1]
    assert told.max() <= table[-1, 1]


@given(table=tables())
def test_it_goes_through_its_knots(table: np.ndarray) -> None:
    assert along(table, table[:, 0]).tolist() == table[:, 1].tolist()


@given(table=tables(), place=st.floats(0, 1))
def test_a_flat_stretch_is_its_own_probability_to_the_last_digit(table: np.ndarray, place: float) -> None:
    for (start, share), (stop, next_share) in zip(table[:-1].tolist(), table[1:].tolist(), strict=True):
        if share == next_share:
            between = min(max(start + place * (stop - start), start), stop)
            assert along(table, between) == share


@given(
    table=tables(), share=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.9, 1.0])), score=SCORES
)
def test_up_to_the_last_knot_at_most_a_share_nothing_lies_above_it(
    table: np.ndarray, share: float, score: float
) -> None:
    last = last_at_most(table, share)
    if last >= 0 and score <= table[last, 0]:
        assert along(table, score) <= share
    if last < 0:
        assert along(table, score) > share
    if last == len(table) - 1:
        assert along(table, score) <= share


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_scores_of_any_shape_and_width_are_read(shape: tuple[int, ...]) -> None:
    scores = np.full(shape, 0.25, np.float32)
    told = along(np.array([[0.0, 0.0], [1.0, 1.0]]), scores)
    assert told.shape == shape
    assert (told == 0.25).all()


UNSOUND = {
    "one knot": [(0.0, 0.5)],
    "too many": [(float(at), at / 100) for at in range(KNOTS + 1)],
    "a score twice": [(0.0, 0.1), (0.0, 0.2)],
    "scores that fall": [(1.0, 0.1), (0.0, 0.2)],
    "probabilities that fall": [(0.0, 0.2), (1.0, 0.1)],
    "more than certain": [(0.0, 0.1), (1.0, 1.1)],
    "less than impossible": [(0.0, -0.1), (1.0, 0.1)],
    "a score that is no number": [(float("nan"), 0.1), (1.0, 0.2)],
    "a score without end": [(0.0, 0.1), (float("inf"), 0.2)],
    "a probability that is no number": [(0.0, float("nan")), (1.0, 0.2)],
    "knots too far apart": [(-1.7e308, 0.1), (1.7e308, 0.2)],
    "knots too close together": [(0.0, 0.1), (5e-324, 0.2)],
    "three numbers": [(0.0, 0.1, 0.2), (1.0, 0.2, 0.3)],
    "nothing": [],
}


@pytest.mark.parametrize("knots", UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_table_is_refused(knots: list[tuple[float, ...]]) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate({"kind": "isotonic", "knots": knots})


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "isotonic"},
        {"kind": "temperature", "knots": [(0.0, 0.1), (1.0, 0.2)]},
        {"kind": "isotonic", "knots": [(0.0, 0.1), (1.0, 0.2)], "scale": 2.0},
        {"kind": "isotonic", "knots": [(0.0, 0.1), (1.0, 0.2)], "offset": 1.0},
    ],
)
def test_a_table_and_a_line_are_not_both(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"knots"):
        Calibration.model_validate(fields)


def test_a_line_is_written_as_it_was_before_there_were_tables() -> None:
    told = Calibration(kind="platt", scale=2.0, offset=1.0).model_dump(mode="json", exclude_none=True)
    assert told == {"kind": "platt", "scale": 2.0, "offset": 1.0}
