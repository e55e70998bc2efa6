"""The guarantee as mathematics: by exact enumeration over what sessions can do, not by sampling."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.streams import binomials
from sidecar.circuits.detector import (
    BETS,
    LAMBDAS,
    NOTHING,
    UNIT,
    advance,
    betting_table,
    leans,
    log_e,
    log_threshold,
    sessions_to_see_nothing,
    softplus,
)
from sidecar.circuits.reference import Band

ROUNDED = math.ceil(4e-5 * UNIT) + 1  # four halvings, each at most 10^-5 below what is true, and the logarithm of 12
BAND = Band(0.25, 0.375)
SHARE = Fraction(19, 20)
FRACTIONS = [Fraction(one).limit_denominator(100) for one in LAMBDAS]


def exactly(fixed: int) -> Decimal:
    """The exponential of it, to fifty digits."""
    with localcontext(prec=50):
        return (Decimal(fixed) / UNIT).exp()


def levels(band: Band, tokens: int) -> list[list[Fraction]]:
    """[k+1][12], the L of the definition, as fractions."""
    low, high = Fraction(band.low), Fraction(band.high)
    x = [Fraction(at, tokens) for at in range(tokens + 1)]
    return [
        [1 + SHARE * one / high * (here - high) for one in FRACTIONS]
        + [1 - SHARE * one / (1 - low) * (here - low) for one in FRACTIONS]
        for here in x
    ]


def binomial(tokens: int, mean: Fraction) -> list[Fraction]:
    return [math.comb(tokens, at) * mean**at * (1 - mean) ** (tokens - at) for at in range(tokens + 1)]


def extremes(tokens: int, mean: Fraction) -> list[list[Fraction]]:
    """Every distribution on two points of {0, 1/k .. 1} with this mean: all others are mixtures of these."""
    found = []
    for a, b in itertools.combinations(range(tokens + 1), 2):
        weight = (mean * tokens - a) / (b - a)
        if 0 <= weight <= 1:
            one = [Fraction(0)] * (tokens + 1)
            one[a], one[b] = 1 - weight, weight
            found.append(one)
    return found


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_every_bet_has_mean_exactly_one_at_the_bands_edge_and_less_within_whatever_sessions_do(tokens):
    table = levels(BAND, tokens)
    low, high = Fraction(BAND.low), Fraction(BAND.high)
    half = len(LAMBDAS)
    for bets, edge in ((range(half), high), (range(half, BETS), low)):
        for here in (binomial(tokens, edge), *extremes(tokens, edge)):
            assert all(sum(p * row[bet] for p, row in zip(here, table, strict=True)) == 1 for bet in bets)
    middle = (low + high) / 2
    for here in (binomial(tokens, middle), *extremes(tokens, middle)):
        assert all(sum(p * row[bet] for p, row in zip(here, table, strict=True)) < 1 for bet in range(BETS))


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("band", [BAND, Band(0.0, 0.0625), Band(0.9375, 1.0), Band(0.0, 1.0), Band(0.4999, 0.5001)])
def test_the_integers_used_are_below_the_true_logarithms_by_at_most_two_units(tokens, band):
    computed = betting_table([band], tokens)[0]
    for row, used in zip(levels(band, tokens), computed.tolist(), strict=True):
        for true, fixed in zip(row, used, strict=True):
            with localcontext(prec=50):
                gap = (Decimal(true.numerator) / Decimal(true.denominator)).ln() * UNIT - fixed
            assert 0 <= gap <= Decimal("2.01")


def test_log_of_one_more_is_never_too_large_and_hardly_too_small():
    x = np.r_[np.arange(-17 * UNIT, 17 * UNIT, 40_009), 0, -16 * UNIT, 16 * UNIT - 1, 16 * UNIT, NOTHING]
    gap = np.logaddexp(x / UNIT, 0.0) * UNIT - softplus(x)
    assert gap.min() > -1e-5
    assert gap.max() < 1e-5 * UNIT


@pytest.mark.parametrize("edge", ["low", "high"])
def test_e_less_the_ticks_is_a_supermartingale_as_it_is_computed(edge):
    """Two ticks of 0 to 2 sessions of 2 tokens, at the edge: the mean of E over everything that can happen, exactly."""
    tokens, many = 2, (Fraction(1, 4), Fraction(1, 4), Fraction(1, 2))
    single = binomial(tokens, Fraction(getattr(BAND, edge)))
    ticks: dict[tuple[int, ...], Fraction] = {}
    for sessions, share in enumerate(many):
        for what in itertools.product(range(tokens + 1), repeat=sessions):
            counts = tuple(np.bincount(np.array(what, int), minlength=tokens + 1).tolist())
            ticks[counts] = ticks.get(counts, Fraction(0)) + share * math.prod(
                (single[one] for one in what), start=Fraction(1)
            )
    assert sum(ticks.values()) == 1
    table = betting_table([BAND], tokens)[0]

    def mean_e(log_m: np.ndarray, left: int) -> Fraction:
        if not left:
            return Fraction(exactly(int(log_e(log_m))))
        return sum(p * mean_e(advance(log_m, np.array(one), table), left - 1) for one, p in ticks.items())

    nothing = np.full(BETS, NOTHING)
    for ticks_left in (1, 2):
        assert mean_e(nothing, ticks_left) <= ticks_left
    later = advance(nothing, np.array([0, 0, 9]), table)
    assert mean_e(later, 1) <= Fraction(exactly(int(log_e(later)))) * Fraction(100_001, 100_000) + 1


def test_it_is_the_detector_of_the_definition_within_a_thousandth():
    """In float64 logarithms, as the formula stands."""
    rng = np.random.default_rng(0)
    counts = binomials(rng, np.linspace(0.3, 0.1, 80)[None], 20, 4)[0]
    table = betting_table([BAND], 4)[0]
    log_l = np.log(np.array([[float(one) for one in row] for row in levels(BAND, 4)]))
    fixed, plain = np.full(BETS, NOTHING), np.full(BETS, -np.inf)
    for one in counts:
        fixed, plain = advance(fixed, one, table), np.logaddexp(plain, 0.0) + one @ log_l
        expected = np.logaddexp.reduce(plain) - math.log(BETS)
        assert expected - 1e-3 <= int(log_e(fixed)) / UNIT <= expected
    assert expected > 10  # it did see the fall
    assert leans(fixed) == "less"


def test_the_mean_time_to_an_alarm_at_the_edge_is_at_least_what_is_promised():
    rng = np.random.default_rng(0)
    promised, streams = 60, 400
    counts = binomials(rng, np.full((streams, 60 * promised), BAND.high), 3, 4)
    table, log_m = betting_table([BAND], 4)[0], np.full((streams, BETS), NOTHING)
    first = np.full(streams, counts.shape[1])  # cut off: it only makes the mean shorter
    for tick in range(counts.shape[1]):
        log_m = advance(log_m, counts[:, tick], table)
        alarm = log_e(log_m) >= log_threshold(promised, 1)
        first[alarm] = np.minimum(first[alarm], tick + 1)
    mean, error = first.mean(), first.std() / math.sqrt(streams)
    assert mean + 2 * error >= promised
    assert (first < counts.shape[1]).mean() > 0.9  # and it is no detector that never speaks


def test_nothing_that_bets_changes_nothing_so_that_silence_is_no_evidence():
    log_m = advance(np.full(BETS, NOTHING), np.array([0, 3, 5]), betting_table([BAND], 2)[0])
    still = log_m
    for _ in range(100_000 // 100):
        still = advance(still, np.zeros(3, np.int64), betting_table([BAND], 2)[0])
    np.testing.assert_array_equal(still, log_m)


@given(
    st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_whatever_is_counted_the_state_stays_within_its_bounds_and_repeats_bit_by_bit(ticks, one, other):
    table = betting_table([Band(min(one, other), max(one, other, 0.01))], 2)[0]
    first, second = np.full(BETS, NOTHING), np.full((4, BETS), NOTHING)
    for tick in ticks:
        counts = np.array(tick)
        first, second = advance(first, counts, table), advance(second, np.tile(counts, (4, 1)), table)
        assert (first >= NOTHING).all()
        assert (second == first).all()  # alone or beside others
        assert first.min() - ROUNDED <= log_e(first) <= first.max()


def test_a_circuits_budget_is_split_over_its_slices():
    assert log_threshold(43_200, 8) - log_threshold(43_200, 1) == pytest.approx(math.log(8) * UNIT, abs=1)


def test_where_the_band_reaches_down_to_zero_an_ablation_is_for_canaries_to_see():
    assert sessions_to_see_nothing(Band(0.0, 0.1), 43_200, 1) == math.inf
    assert sessions_to_see_nothing(Band(0.25, 0.35), 43_200, 1) < 80


@pytest.mark.process
def test_a_processor_without_wide_vectors_gets_the_same_bits():
    """Numpy's exp and log differ in the last digit by the instructions that they use; what is made of them here does not."""
    code = """
import hashlib, numpy as np
from bench.streams import AR1, stream
from sidecar.circuits.detector import BETS, NOTHING, advance, betting_table, log_e
from sidecar.circuits.reference import Band
counts = stream(AR1, 300, np.random.default_rng(0))[0]
log_m, seen = np.full(BETS, NOTHING), hashlib.sha256()
for tick, one in enumerate(counts):
    table = betting_table([Band(0.2 + tick / 3001, 0.3 + tick / 2999)], 4)[0]
    log_m = advance(log_m, one, table)
    seen.update(table.tobytes() + log_m.tobytes() + log_e(log_m).tobytes())
print(seen.hexdigest())
"""
    wide = [one for one in ("AVX2", "AVX512F", "AVX512_SKX", "X86_V3", "X86_V4") if _cpu_features().get(one)]
    told = []
    for off in ([], wide):
        env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(off)} if off else dict(os.environ)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        if off and done.returncode:  # built for them: they cannot be switched off
            pytest.fail(done.stderr[-500:])
        told.append(done.stdout)
    assert told[0] == told[1] != ""


def _cpu_features() -> dict[str, bool]:
    from numpy._core._multiarray_umath import __cpu_baseline__, __cpu_dispatch__, __cpu_features__

    return {
        name: here and name in __cpu_dispatch__ and name not in __cpu_baseline__
        for name, here in __cpu_features__.items()
    }
