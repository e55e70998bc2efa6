"""No false alarm on traffic in which nothing happened, with the shipped settings; and why each of the three rules is there."""

from __future__ import annotations

import numpy as np
import pytest

from bench.detecting import detect, flat, learned
from bench.streams import AR1, BOTH, DAY, DIURNAL, IID, MEAN, MONTH, NULLS, SESSIONS, Counts, stream, tick_means

WEEKS = 2  # of history that a reference is learned from


@pytest.mark.parametrize("kind", NULLS, ids=lambda one: one.name)
@pytest.mark.timeout(1800)
def test_no_false_alarm_on_null_streams_with_the_shipped_settings(kind, full):
    """Short: 7 circuit-days x 8. FULL: 104 circuit-months over the five kinds, against 26 references."""
    rng = np.random.default_rng(11)
    for _ in range(26 if full else 1):
        reference = learned(kind, WEEKS, rng)
        ticks, streams = (MONTH // 5, 4) if full else (7 * DAY, 8)
        found = detect(stream(kind, ticks, rng, streams=streams, begin=5 * MONTH), reference, begin=5 * MONTH)
        assert found.alarms.sum() == 0, (kind, found.highest)


def of_tokens(ticks: int, streams: int, rng: np.random.Generator) -> Counts:
    """Every token a bet of its own: about 50 of each session."""
    shares = rng.beta(2 * MEAN, 2 * (1 - MEAN), size=(streams, ticks, SESSIONS))
    many = rng.geometric(1 / 50, size=shares.shape)
    engaged = rng.binomial(many, shares).sum(axis=-1)
    return np.stack((many.sum(axis=-1) - engaged, engaged), axis=-1)


def of_requests(ticks: int, streams: int, rng: np.random.Generator) -> Counts:
    """Every request a bet of its own: 30 of each session, in one burst."""
    shares = rng.beta(2 * MEAN, 2 * (1 - MEAN), size=(streams, ticks, SESSIONS))
    engaged = rng.binomial(4, np.repeat(shares, 30, axis=2))
    return (engaged[..., None] == np.arange(5)).sum(axis=-2)


def share(counts: Counts, references) -> float:
    return float((detect(counts, references).alarms > 0).mean())


@pytest.mark.parametrize("unit", [of_tokens, of_requests])
def test_with_tokens_or_requests_as_units_every_null_stream_alarms_and_with_sessions_none(unit):
    rng = np.random.default_rng(0)
    assert share(unit(240, 20, rng), flat(MEAN)) == 1.0
    assert share(stream(IID, DAY, rng, streams=20), flat(MEAN)) == 0.0


def test_without_a_tolerance_nearly_every_null_stream_alarms_against_what_an_hour_taught_and_with_it_none():
    """The reference is a mean of 600 sessions: never quite the truth, and a detector that is patient enough finds that out."""
    rng = np.random.default_rng(5)
    means = tick_means(stream(IID, 30, rng, streams=20).sum(axis=1, keepdims=True))[:, 0].tolist()
    sound = stream(IID, 5 * DAY, rng, streams=20)
    assert share(sound, [flat(mean, tolerance=1e-9) for mean in means]) >= 0.7
    assert share(sound, [flat(mean) for mean in means]) == 0.0


def test_without_the_hour_of_the_week_every_stream_that_follows_the_clock_alarms_and_with_it_none():
    rng = np.random.default_rng(0)
    sound = stream(DIURNAL, 2 * DAY, rng, streams=12)
    assert share(sound, flat(MEAN)) == 1.0
    assert share(sound, learned(DIURNAL, WEEKS, rng)) == 0.0


def test_a_stream_that_is_not_null_is_not_silent_under_the_same_settings():
    """So that the silence above is worth something: ten points less, for a day."""
    rng = np.random.default_rng(0)
    assert share(stream(AR1, DAY, rng, streams=12, mean=MEAN - 0.1), learned(AR1, WEEKS, rng)) == 1.0
    assert share(stream(BOTH, DAY, rng, streams=12, mean=MEAN - 0.1), learned(BOTH, WEEKS, rng)) == 1.0
