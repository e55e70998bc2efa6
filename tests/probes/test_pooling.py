"""Training pools a request as the service will score it, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.manifest import Aggregation, AggregationKind
from probes.pooling import LINEAR, aggregate, weights
from sidecar.judge.aggregate import Aggregates, Grouped
from tests.builders import make_signal

KINDS = st.builds(Aggregation, kind=st.sampled_from(AggregationKind), window=st.integers(1, 12))
READINGS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40)


def by_definition(readings: Sequence[float], aggregation: Aggregation) -> float:
    """The words of the definition, one reading at a time."""
    if aggregation.kind is AggregationKind.MEAN:
        return sum(readings) / len(readings)
    if aggregation.kind is AggregationKind.LAST:
        return readings[-1]
    if aggregation.kind is AggregationKind.EMA:
        score = readings[0]
        for reading in readings[1:]:
            score += 2 / (aggregation.window + 1) * (reading - score)
        return score
    window = aggregation.window
    if len(readings) < window:
        return sum(readings) / len(readings)
    return max(sum(readings[at - window : at]) / window for at in range(window, len(readings) + 1))


@given(READINGS, KINDS)
def test_pooling_is_what_its_definition_says(readings: list[float], aggregation: Aggregation) -> None:
    found = aggregate(np.array(readings), aggregation)
    assert found == pytest.approx(by_definition(readings, aggregation), rel=1e-9, abs=1e-9)


@given(READINGS, KINDS, st.data())
def test_pooling_equals_the_services_running_score_however_the_rows_arrive(
    readings: list[float], aggregation: Aggregation, data: st.DataObject
) -> None:
    running = Aggregates([make_signal(aggregation=aggregation.kind, window=aggregation.window)], 1)
    left = readings
    while left:
        count = data.draw(st.integers(1, len(left)))
        rows, left = np.array(left[:count], np.float32)[:, None], left[count:]
        ones = np.ones_like(rows, dtype=np.bool_)
        running.update(Grouped(rows, ones, np.array([0], dtype=np.intp), np.array([0], dtype=np.intp)))
    scores, _ = running.state_of(np.zeros(1, np.intp))
    assert scores[0, 0] == pytest.approx(aggregate(np.array(readings), aggregation), rel=1e-5, abs=1e-4)


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
