from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from probes.kinds import losses
from probes.kinds.windows import Spans, Windows
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import aggregate

Array = npt.NDArray[np.float64]
STARTS = np.array([0, 1, 4, 12])  # texts of 1, 3, 8 and 7 rows
ROWS = 19
SPANS = Spans(STARTS, ROWS)
SIGNS = np.array([1.0, -1.0, 1.0, -1.0])
WEIGHTS = np.array([0.5, 1.5, 1.0, 2.0])
THROUGH: dict[str, tuple[losses.Loss, Aggregation]] = {
    "attention": (losses.attention, Aggregation(kind=AggregationKind.ATTENTION)),
    "rolling": (losses.RollingAttention(4), Aggregation(kind=AggregationKind.MAX_ROLLING_ATTENTION, window=4)),
    "multimax": (losses.multimax, Aggregation(kind=AggregationKind.MULTIMAX, heads=3)),
}
ALL: dict[str, tuple[losses.Loss, int]] = {
    **{name: (loss, aggregation.columns) for name, (loss, aggregation) in THROUGH.items()},
    "tokens": (losses.OverTokens(1, 0.0), 1),
    "windows": (losses.OverTokens(4, 0.0), 1),
    "sharp windows": (losses.OverTokens(4, 2.0), 1),
}


def _readings(columns: int) -> Array:
    return np.random.default_rng(4).normal(size=(ROWS, columns)) * 2


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_is_the_slope(name: str) -> None:
    loss, columns = ALL[name]
    readings, step = _readings(columns), 1e-6
    _, gradient = loss(readings, SPANS, SIGNS, WEIGHTS)
    slopes = np.zeros_like(readings)
    for at in np.ndindex(*readings.shape):
        moved = np.zeros_like(readings)
        moved[at] = step
        above, below = (loss(readings + sign * moved, SPANS, SIGNS, WEIGHTS)[0] for sign in (1, -1))
        slopes[at] = (above - below) / (2 * step)
    assert np.abs(gradient).max() > 0.01
    assert np.allclose(gradient, slopes, atol=1e-7)


@pytest.mark.parametrize("name", THROUGH)
def test_what_is_trained_through_is_the_score_that_is_served(name: str) -> None:
    loss, aggregation = THROUGH[name]
    readings = _readings(aggregation.columns)
    scores = np.array([aggregate(text, aggregation) for text in np.split(readings, STARTS[1:])])
    assert loss(readings, SPANS, SIGNS, WEIGHTS)[0] == pytest.approx(WEIGHTS @ np.log1p(np.exp(-SIGNS * scores)))


def test_sharp_windows_learn_from_the_most_telling_window_more_than_from_others() -> None:
    readings = np.array([[4.0], [0.0], [0.0], [0.0]])
    whole, one = Spans(np.array([0]), 4), np.ones(1)
    even = losses.OverTokens(1, 0.0)(readings, whole, -one, one)[1][:, 0]
    sharp = losses.OverTokens(1, 1.0)(readings, whole, -one, one)[1][:, 0]
    assert sharp[0] / sharp.sum() > 0.9 > even[0] / even.sum()


def test_equal_heads_share_the_pull() -> None:
    _, pull = losses.multimax(np.ones((3, 1)), Spans(np.array([0]), 3), np.ones(1), np.ones(1))
    assert np.allclose(pull, pull[0])


def test_a_score_of_hundreds_does_not_overflow() -> None:
    found, slopes = losses.log_loss(np.array([-900.0, 900.0]), np.ones(2))
    assert found.tolist() == [900.0, 0.0]
    assert slopes.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("length", [1, 3, 7, 30])
def test_windows_are_all_runs_of_rows_within_a_text(length: int) -> None:
    windows = Windows.of(STARTS, ROWS, length)
    bounds = [*STARTS.tolist(), ROWS]
    wanted = [
        (first, min(length, stop - start), text)
        for text, (start, stop) in enumerate(pairwise(bounds))
        for first in range(start, max(start, stop - length) + 1)
    ]
    assert list(zip(windows.first.tolist(), windows.size.tolist(), windows.owner.tolist(), strict=True)) == wanted


def test_windows_of_a_length_are_worked_out_once() -> None:
    spans = Spans(STARTS, ROWS)
    assert spans.windows(4) is spans.windows(4)
    assert spans.windows(4) is not spans.windows(3)
    assert spans.owner.tolist() == np.repeat(range(4), [1, 3, 8, 7]).tolist()


def test_spreading_pulls_over_rows_is_the_transpose_of_taking_means() -> None:
    windows, random = Windows.of(STARTS, ROWS, 4), np.random.default_rng(5)
    readings, pulls = random.normal(size=ROWS), random.normal(size=len(Windows.of(STARTS, ROWS, 4).first))
    assert windows.means(readings) @ pulls == pytest.approx(readings @ windows.spread(pulls))
