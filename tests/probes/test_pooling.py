"""Training pools a request as the service will score it, row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR, aggregate, weights
from sidecar.judge.aggregate import Aggregates, Grouped
from tests.builders import make_signal
from tests.definitions import by_definition

KINDS = st.builds(
    lambda kind, window, agree, heads: Aggregation(
        kind=kind, window=window, agree=min(agree, window), heads=heads if kind is AggregationKind.MULTIMAX else 1
    ),
    st.sampled_from(AggregationKind),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 3),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Aggregation]:
    """Readings [n, columns] of float32 values, and how they are to be aggregated."""
    aggregation = draw(KINDS)
    row = st.lists(st.floats(-50, 50, width=32), min_size=aggregation.columns, max_size=aggregation.columns)
    return np.array(draw(st.lists(row, min_size=1, max_size=40))), aggregation


@given(cases())
def test_pooling_is_what_its_definition_says(case: tuple[np.ndarray, Aggregation]) -> None:
    readings, aggregation = case
    assert aggregate(readings, aggregation) == pytest.approx(by_definition(aggregation, readings), rel=1e-9, abs=1e-9)


@given(cases(), st.data())
def test_pooling_equals_the_services_running_score_however_the_rows_arrive(
    case: tuple[np.ndarray, Aggregation], data: st.DataObject
) -> None:
    readings, aggregation = case
    fields = {"window": aggregation.window, "agree": aggregation.agree, "columns": aggregation.columns}
    running = Aggregates([make_signal(aggregation=aggregation.kind, **fields)], 1)
    left = readings.astype(np.float32)
    while len(left):
        count = data.draw(st.integers(1, len(left)))
        rows, left = left[:count], left[count:]
        ones = np.ones((count, 1), dtype=np.bool_)
        running.update(Grouped(rows, ones, np.array([0], dtype=np.intp), np.array([0], dtype=np.intp)))
    scores, _ = running.state_of(np.zeros(1, np.intp))
    assert scores[0, 0] == pytest.approx(aggregate(readings, aggregation), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", [AggregationKind.ATTENTION, AggregationKind.MAX_ROLLING_ATTENTION])
def test_queries_beyond_what_exp_can_hold_do_not_overflow_here_nor_there(kind: AggregationKind) -> None:
    readings = np.array([[1.0, -2000.0], [2.0, 3000.0], [3.0, 3001.0], [4.0, -3000.0]])
    running = Aggregates([make_signal(aggregation=kind, window=3, columns=2)], 1)
    for row in readings.astype(np.float32):
        running.update(Grouped(row[None], np.ones((1, 1), np.bool_), np.zeros(1, np.intp), np.zeros(1, np.intp)))
    scores, _ = running.state_of(np.zeros(1, np.intp))
    share = 1 / (1 + np.exp(-1.0))
    assert aggregate(readings, Aggregation(kind=kind, window=3)) == pytest.approx(2 + share)
    assert scores[0, 0] == pytest.approx(2 + share, rel=1e-5)


@given(st.integers(1, 200), KINDS.filter(lambda aggregation: aggregation.kind in LINEAR))
def test_weights_of_linear_kinds_add_up_to_one(count: int, aggregation: Aggregation) -> None:
    found = weights(aggregation, count)
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all()


def test_a_maximum_has_no_weights() -> None:
    with pytest.raises(ValueError, match="not a weighted sum"):
        weights(Aggregation(kind=AggregationKind.MAX_ROLLING_MEAN), 3)


@pytest.mark.parametrize("kind", sorted(LINEAR))
def test_reading_pooled_states_is_pooling_readings(kind: AggregationKind) -> None:
    rng = np.random.default_rng(0)
    rows, direction = rng.standard_normal((30, 8)), rng.standard_normal(8)
    aggregation = Aggregation(kind=kind, window=5)
    assert weights(aggregation, 30) @ rows @ direction + 0.7 == pytest.approx(
        aggregate(rows @ direction + 0.7, aggregation)
    )
