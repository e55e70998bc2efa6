"""How an effect is counted, and against what."""

from __future__ import annotations

import numpy as np
import pytest

from probes.causal.behaviour import Measure
from probes.causal.effects import lifted, lost, p_value, passes, value
from probes.quality.bootstrap import Resamples

LABELS = np.array([True, True, True, False, False, False])
BEFORE = np.array([2.0, 3.0, 4.0, -2.0, -3.0, -4.0])


def test_the_same_shift_for_every_text_is_no_loss() -> None:
    for measure in Measure:
        assert value(lost(BEFORE, BEFORE - 7.0, LABELS, measure), 6) == pytest.approx(0.0)


def test_what_is_lost_is_told_in_nats_or_in_auroc() -> None:
    flat = np.zeros(6)
    assert value(lost(BEFORE, flat, LABELS, Measure.LOG_ODDS), 6) == pytest.approx(6.0)
    assert value(lost(BEFORE, flat, LABELS, Measure.AUROC), 6) == pytest.approx(0.5)
    assert value(lost(BEFORE, BEFORE * 2, LABELS, Measure.LOG_ODDS), 6) == pytest.approx(-6.0)


def test_steering_counts_half_of_what_lies_between_up_and_down() -> None:
    assert value(lifted(BEFORE + 1.0, BEFORE - 2.0, Measure.LOG_ODDS), 6) == pytest.approx(1.5)
    assert value(lifted(BEFORE + 100.0, BEFORE, Measure.AUROC), 6) == pytest.approx(0.5)
    assert value(lifted(BEFORE, BEFORE, Measure.AUROC), 6) == pytest.approx(0.0)


@pytest.mark.parametrize("measure", list(Measure))
def test_a_text_that_counts_twice_is_the_same_as_two_texts(measure: Measure) -> None:
    after = np.array([1.0, -3.0, 2.0, -1.0, 0.5, 1.5])
    twice = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    weights = np.bincount(twice).astype(float)[None]
    for weighted, doubled in (
        (lost(BEFORE, after, LABELS, measure), lost(BEFORE[twice], after[twice], LABELS[twice], measure)),
        (lifted(BEFORE, after, measure), lifted(BEFORE[twice], after[twice], measure)),
    ):
        assert weighted(weights)[0] == pytest.approx(value(doubled, len(twice)))


def test_the_interval_holds_the_effect_and_narrows_with_more_texts() -> None:
    draws = np.random.default_rng(0)

    def width(n: int) -> float:
        labels = np.arange(n) % 2 == 0
        statistic = lost(draws.normal(size=n) + 2.0 * labels, np.zeros(n), labels, Measure.LOG_ODDS)
        low, high = Resamples(labels, np.arange(n), 0).interval(statistic)
        assert low < value(statistic, n) < high
        return high - low

    assert width(400) < 0.6 * width(40)


def test_pairs_are_drawn_together() -> None:
    """Each pair by itself shows nothing, so no draw of whole pairs does; draws of single texts would."""
    labels = np.array([True, False] * 10)
    statistic = lost(np.repeat(np.arange(10.0), 2), np.zeros(20), labels, Measure.LOG_ODDS)
    assert Resamples(labels, np.arange(20) // 2, 0).interval(statistic) == pytest.approx((0.0, 0.0))
    low, high = Resamples(labels, np.arange(20), 0).interval(statistic)
    assert low < -1 < 1 < high


def test_twenty_random_directions_can_just_be_beaten() -> None:
    assert p_value(1.0, [0.0] * 20) == pytest.approx(1 / 21)
    assert passes((0.1, 2.0), p_value(1.0, [0.0] * 20))
    assert not passes((0.1, 2.0), p_value(1.0, [0.0] * 19 + [1.0]))
    assert not passes((-0.1, 2.0), p_value(1.0, [0.0] * 20))
