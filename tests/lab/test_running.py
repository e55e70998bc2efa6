from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.kinds.streaming import Running
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import aggregate

numbers = st.floats(-50, 50, allow_nan=False, width=32)


@st.composite
def aggregations(draw: st.DrawFn) -> Aggregation:
    kind = draw(st.sampled_from(AggregationKind))
    window = draw(st.integers(1, 12))
    heads = draw(st.integers(1, 4)) if kind is AggregationKind.MULTIMAX else 1
    return Aggregation(kind=kind, window=window, agree=draw(st.integers(1, window)), heads=heads)


@given(aggregation=aggregations(), data=st.data())
def test_after_every_token_the_running_score_is_that_of_all_readings_so_far(
    aggregation: Aggregation, data: st.DataObject
) -> None:
    row = st.lists(numbers, min_size=aggregation.columns, max_size=aggregation.columns)
    readings = data.draw(st.lists(row, min_size=1, max_size=40))
    running = Running(aggregation)
    for count, reading in enumerate(readings, start=1):
        running.push(reading)
        batch = aggregate(np.array(readings[:count], dtype=np.float64), aggregation)
        assert running.score == pytest.approx(batch, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", AggregationKind)
def test_reading_the_score_in_between_changes_nothing(kind: AggregationKind) -> None:
    aggregation = Aggregation(kind=kind, window=4, agree=2)
    readings = np.random.default_rng(3).normal(size=(15, aggregation.columns))
    asked, left_alone = Running(aggregation), Running(aggregation)
    for reading in readings:
        asked.push(reading.tolist())
        assert asked.score == asked.score
        left_alone.push(reading.tolist())
    assert asked.score == left_alone.score


@pytest.mark.parametrize("kind", [AggregationKind.ATTENTION, AggregationKind.MAX_ROLLING_ATTENTION])
def test_queries_beyond_what_exp_can_hold_do_not_overflow(kind: AggregationKind) -> None:
    aggregation, running = Aggregation(kind=kind, window=3), Running(Aggregation(kind=kind, window=3))
    readings = np.array([[1.0, -2000.0], [2.0, 3000.0], [3.0, 3001.0], [4.0, -3000.0]])
    for reading in readings:
        running.push(reading.tolist())
    assert running.score == pytest.approx(aggregate(readings, aggregation))


@pytest.mark.parametrize("kind", AggregationKind)
def test_there_is_no_score_before_the_first_token(kind: AggregationKind) -> None:
    with pytest.raises(ValueError, match="before the first token"):
        _ = Running(Aggregation(kind=kind)).score


def test_a_row_of_another_width_is_refused_and_changes_nothing() -> None:
    running = Running(Aggregation(kind=AggregationKind.MULTIMAX, heads=2))
    running.push([1.0, 2.0])
    with pytest.raises(ValueError, match="want 2 readings a token, got 1"):
        running.push([9.0])
    assert running.score == 3.0


@pytest.mark.parametrize("kind", AggregationKind)
def test_what_is_kept_does_not_grow_with_the_tokens(kind: AggregationKind) -> None:
    import pickle

    aggregation = Aggregation(kind=kind, window=8, agree=3)
    running, sizes = Running(aggregation), []
    for count in range(400):
        running.push([float(count % 7)] * aggregation.columns)
        if count in {50, 399}:
            sizes.append(len(pickle.dumps(_state(running))))
    assert sizes[1] <= sizes[0] + 16


def _state(running: Running) -> list[object]:
    form = running._form
    return [{name: value for name, value in vars(one).items() if not callable(value)} for one in (form, *_inner(form))]


def _inner(form: object) -> list[object]:
    return [value for value in vars(form).values() if type(value).__module__ == type(form).__module__]
