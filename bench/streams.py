"""Traffic as a circuit's detectors see it: how many sessions bet in each tick, and what they bet. Nothing wrong, or ablated.

What is called null is null in the sense that matters on call: nothing happened to the model and nobody uses it in another way. The
share of engaged tokens may still follow the hour (diurnal), wander (AR(1)) and come in bursts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]
TICK_S = 60
DAY = 1440
MONTH = 30 * DAY
MEAN = 0.3  # share of engaged tokens in sound traffic
SESSIONS = 20  # that bet in a tick
TOKENS = 4
SWING = 0.10  # diurnal: +-10 points, with the working week's afternoons high
WANDER, RETURN = 0.015, 0.98  # AR(1): standard deviation in shares, and what is left of a move after a minute
_HALF_HOURLY = 30


@dataclass(frozen=True, slots=True)
class Kind:
    """What moves in a null stream. wanders: the standard deviation of an AR(1), in shares."""

    name: str
    diurnal: bool = False
    wanders: float = 0.0
    bursts: bool = False


IID = Kind("iid")
AR1 = Kind("AR(1)", wanders=WANDER)
DIURNAL = Kind("diurnal", diurnal=True)
BURSTY = Kind("bursty", bursts=True)
BOTH = Kind("diurnal + AR(1)", diurnal=True, wanders=WANDER)
NULLS = (IID, AR1, DIURNAL, BURSTY, BOTH)
FARTHER = tuple(Kind(f"AR(1) of {points} points", wanders=points / 100) for points in (3, 5))  # 5 is the tolerance


def stream(
    kind: Kind,
    ticks: int,
    rng: np.random.Generator,
    *,
    streams: int = 1,
    begin: int = 0,
    mean: float = MEAN,
    sessions: float = SESSIONS,
    tokens: int = TOKENS,
) -> Counts:
    """[streams, ticks, k+1]: sessions of each tick by how many of their k tokens were engaged. begin: the first tick.

    Sessions differ: each has a share of its own, from a Beta distribution around the tick's mean, so that its tokens are alike.
    A tick has a Poisson number of them, and so those with so many engaged tokens are Poisson numbers of their own.
    """
    means = np.clip(mean + _moves(kind, streams, ticks, begin, rng), 0.01, 0.99)
    rates = _rates(kind, streams, ticks, sessions, rng)
    counts = np.empty((streams, ticks, tokens + 1), np.int64)
    for engaged in range(tokens + 1):
        counts[..., engaged] = rng.poisson(rates * engaged_share(means, engaged, tokens))
    return counts


def engaged_share(means: Shares, engaged: int, tokens: int) -> Shares:
    """The share of sessions with so many engaged tokens: beta-binomial, from Beta(2 m, 2 (1 - m)).

    >>> [round(float(engaged_share(np.array(0.5), engaged, 2)), 4) for engaged in range(3)]  # Beta(1, 1): all alike
    [0.3333, 0.3333, 0.3333]
    """
    share: Shares = np.full_like(means, math.comb(tokens, engaged) / math.factorial(tokens + 1))
    for at in range(engaged):
        share *= 2 * means + at
    for at in range(tokens - engaged):
        share *= 2 * (1 - means) + at
    return share


def ablated(
    ticks: int,
    rng: np.random.Generator,
    *,
    streams: int = 1,
    left: float = 0.01,
    sessions: int = SESSIONS,
    tokens: int = TOKENS,
) -> Counts:
    """The same of a circuit that is gone: one token in a hundred still counts as engaged. Exactly ``sessions`` bet in a tick."""
    return binomials(rng, np.full((streams, ticks), left), sessions, tokens)


def binomials(rng: np.random.Generator, shares: Shares, sessions: int, tokens: int) -> Counts:
    """[streams, ticks, k+1] of sessions that are alike."""
    engaged = rng.binomial(tokens, shares[..., None], size=(*shares.shape, sessions))
    counts: Counts = (engaged[..., None] == np.arange(tokens + 1)).sum(axis=-2, dtype=np.int64)
    return counts


def diurnal(begin: int, ticks: int) -> Shares:
    """[ticks], in shares: a day's wave, half as high at weekends."""
    at = begin + np.arange(ticks)
    weekend = (at // DAY + 3) % 7 >= 5  # the epoch began on a Thursday
    wave: Shares = SWING * np.sin(2 * np.pi * (at % DAY) / DAY - np.pi / 2) * np.where(weekend, 0.5, 1.0)
    return wave


def _moves(kind: Kind, streams: int, ticks: int, begin: int, rng: np.random.Generator) -> Shares:
    moves = np.zeros((streams, ticks))
    if kind.diurnal:
        moves += diurnal(begin, ticks)
    if kind.wanders:
        moves += _wander(rng, streams, ticks, kind.wanders)
    return moves


def _wander(rng: np.random.Generator, streams: int, ticks: int, deviation: float) -> Shares:
    """[streams, ticks] of a stationary AR(1)."""
    from scipy.signal import lfilter

    new = rng.normal(size=(streams, ticks)) * deviation * np.sqrt(1 - RETURN**2)
    new[:, 0] = rng.normal(size=streams) * deviation
    walked: Shares = lfilter([1.0], [1.0, -RETURN], new, axis=1)
    return walked


def _rates(kind: Kind, streams: int, ticks: int, sessions: float, rng: np.random.Generator) -> Shares:
    """Sessions a tick: bursts are half an hour of ten times as many, twice a day, with hardly anybody in other half hours."""
    rates = np.full((streams, ticks), float(sessions))
    if kind.bursts:
        blocks = -(-ticks // _HALF_HOURLY)
        factor = rng.choice([0.05, 1.0, 10.0], p=[0.2, 0.76, 0.04], size=(streams, blocks))
        rates *= np.repeat(factor, _HALF_HOURLY, axis=1)[:, :ticks]
    return rates


def tick_means(counts: Counts) -> Shares:
    """[..., ticks]: what other detectors are given: the mean share of the tick's sessions, NaN in a tick without any."""
    tokens = counts.shape[-1] - 1
    with np.errstate(invalid="ignore"):
        means: Shares = counts @ (np.arange(tokens + 1) / tokens) / counts.sum(axis=-1)
    return means
