"""A certified threshold keeps its promise in at least as many draws as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from probes.threshold import CONFIDENCE, benign_threshold, clopper_pearson

DRAWS = 2000


@pytest.mark.parametrize(("rows", "target"), [(59, 0.05), (93, 0.05), (263, 0.05), (299, 0.01), (500, 0.01), (40, 0.1)])
def test_certified_threshold_holds_its_rate_in_95_percent_of_draws(rows: int, target: float) -> None:
    rng = np.random.default_rng(rows)
    found = [benign_threshold(rng.standard_normal(rows), target) for _ in range(DRAWS)]
    assert all(threshold.certified for threshold in found)
    true_rates = norm.sf([threshold.value for threshold in found])
    kept = int((true_rates <= target).sum())
    # Fewer than this happens once in a thousand runs of a method that keeps its promise exactly.
    assert kept >= binom.ppf(0.001, DRAWS, CONFIDENCE)


@pytest.mark.parametrize(("rows", "target"), [(93, 0.05), (263, 0.05), (473, 0.01)])
def test_threshold_is_the_lowest_that_can_be_promised(rows: int, target: float) -> None:
    """One more exceedance allowed would break the promise: the order statistic below fails too often."""
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(DRAWS):
        scores = np.sort(rng.standard_normal(rows))[::-1]
        allowed = benign_threshold(scores, target).exceeding
        broken += norm.sf(scores[allowed + 1]) > target
    assert broken / DRAWS > 1 - CONFIDENCE


@pytest.mark.parametrize(("rows", "target"), [(59, 0.05), (299, 0.01), (2995, 0.001)])
def test_fewest_rows_that_can_certify(rows: int, target: float) -> None:
    assert benign_threshold(np.arange(float(rows)), target).certified
    fewer = benign_threshold(np.arange(rows - 1.0), target)
    assert not fewer.certified
    assert fewer.value == rows - 2
    assert fewer.exceeding == 0


def test_ties_fire_on_no_more_than_was_counted() -> None:
    scores = np.repeat([0.2, 0.9], [200, 63])
    found = benign_threshold(scores, 0.05)
    assert (found.value, found.exceeding, found.measured_fpr) == (0.9, 0, 0.0)


def test_an_increasing_calibration_does_not_change_who_fires() -> None:
    scores = np.random.default_rng(2).standard_normal(300)
    plain, squashed = benign_threshold(scores, 0.05), benign_threshold(np.tanh(scores), 0.05)
    assert squashed.value == np.tanh(plain.value)
    assert squashed.exceeding == plain.exceeding


@pytest.mark.parametrize(("hits", "rows"), [(0, 59), (5, 216), (30, 30), (1, 2)])
def test_clopper_pearson_edges_are_where_the_tails_weigh_half_the_error(hits: int, rows: int) -> None:
    low, high = clopper_pearson(hits, rows)
    assert low == 0.0 if hits == 0 else binom.sf(hits - 1, rows, low) == pytest.approx(0.025)
    assert high == 1.0 if hits == rows else binom.cdf(hits, rows, high) == pytest.approx(0.025)
    assert low <= hits / rows <= high
