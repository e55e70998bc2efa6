"""The e-detector in Shiryaev-Roberts form (Shin, Ramdas and Rinaldo, "E-detectors"), in integers that any machine gets the same.

For a band [m-, m+] and each lambda of `LAMBDAS`, a session whose k tokens were engaged to the share x multiplies
    L+ = 1 + (.95 lambda / m+) (x - m+)        L- = 1 - (.95 lambda / (1 - m-)) (x - m-)
and at the end of each tick M <- (M + 1) * (product of its L). E is the mean of the 12 M. While every session's conditional mean
lies in the band, each L has mean at most 1, E - t is a supermartingale, and so the mean time to E >= A is at least A ticks.

log M is kept in 2^-24ths. Logarithms of L are rounded down once, sums of them are exact, and log(M + 1) is a tangent below the
curve: every rounding makes E smaller, so that the guarantee holds for what is computed, and a replay is bit-exact anywhere.
A tick without a bet is no tick: M stays, for doing nothing would otherwise make it grow by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from sidecar.circuits.reference import Band

Fixed = npt.NDArray[np.int64]  # logarithms, in 2^-24ths
LAMBDAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
BETS = 2 * len(LAMBDAS)  # M's: first those that grow as x does, then those that grow as it falls
UNIT = 1 << 24
NOTHING = -(1 << 60)  # log 0, where every detector begins
RUN_LENGTH = 43_200  # ticks: 30 days of minutes
_SHARE = 0.95
_REACH = 16  # nats beyond which log(1 + e^x) is 0 or x, to 2^-24
_CELL_BITS = 18
_CELL = 1 << _CELL_BITS  # 1/64 of a nat
_CELLS_PER_NAT = UNIT // _CELL


def betting_table(bands: Sequence[Band], tokens: int) -> Fixed:
    """[bands, k+1, 12]: log L of a session by how many of its k tokens were engaged, rounded down.

    >>> (betting_table([Band(0.2, 0.4)], 1)[0, :, [5, 11]] / UNIT).round(3).tolist()  # lambda .8, x = 0 and x = 1
    [[-1.427, 0.761], [0.174, -1.427]]
    """
    low, high = (np.array([getattr(one, name) for one in bands])[:, None, None] for name in ("low", "high"))
    bet = _SHARE * np.array(LAMBDAS)
    x = np.arange(tokens + 1)[:, None] / tokens
    with np.errstate(all="ignore"):  # a band that ends at 0 or 1 bets nothing beyond it
        more = np.where(high > 0, 1 + bet / high * (x - high), 1.0)
        less = np.where(low < 1, 1 - bet / (1 - low) * (x - low), 1.0)
    levels = np.concatenate(np.broadcast_arrays(more, less), axis=-1)
    # One 2^-24th below: a logarithm that is off in its last digit, on whatever machine, still comes out below the true one.
    table: Fixed = np.floor(np.log(levels) * UNIT).astype(np.int64) - 1
    return table


def advance(log_m: Fixed, evidence: npt.NDArray[np.int64], table: Fixed) -> Fixed:
    """One tick of any number of detectors. log_m: [..., 12]; evidence: [..., k+1]; table: [..., k+1, 12].

    Returns a new [..., 12]. Where no session bet, it is what it was.
    """
    product = (evidence[..., None] * table).sum(axis=-2)
    return np.where(evidence.any(axis=-1, keepdims=True), np.maximum(softplus(log_m) + product, NOTHING), log_m)


def log_e(log_m: Fixed) -> Fixed:
    """[..., 12] to [...]: the logarithm of the mean of the M, rounded down."""
    total, many = log_m, log_m.shape[-1]
    while total.shape[-1] > 1:  # halves onto each other, always in this order: it is part of what a replay repeats
        half = total.shape[-1] // 2
        one, other = total[..., :half], total[..., half : 2 * half]
        added = np.maximum(one, other) + softplus(-np.abs(one - other))
        total = np.concatenate((added, total[..., 2 * half :]), axis=-1)
    return np.maximum(total[..., 0] - math.ceil(math.log(many) * UNIT), NOTHING)


def log_threshold(run_length: int, slices: int) -> int:
    """What log E must reach: a circuit's budget is split over its slices. Rounded up."""
    return math.ceil(math.log(run_length * slices) * UNIT)


def softplus(x: Fixed) -> Fixed:
    """log(1 + e^x), never above it and at most 10^-5 below."""
    at = np.clip(x, -_REACH * UNIT, _REACH * UNIT - 1) + _REACH * UNIT
    values, slopes = _tangents()
    cell = at >> _CELL_BITS
    inside = values[cell] + (slopes[cell] * ((at & (_CELL - 1)) - _CELL // 2) >> 24)
    return np.where(x >= _REACH * UNIT, x, np.maximum(inside, 0))


@cache
def _tangents() -> tuple[Fixed, Fixed]:
    """Value, less 2^-24 for all rounding, and slope in the middle of each cell: the curve is convex, so a tangent is below it."""
    middles = [(cell + 0.5) / _CELLS_PER_NAT - _REACH for cell in range(2 * _REACH * _CELLS_PER_NAT)]
    values = [math.floor(math.log1p(math.exp(x)) * UNIT) - 1 for x in middles]
    slopes = [math.floor(UNIT / (1 + math.exp(-x))) for x in middles]
    return np.array(values), np.array(slopes)


def leans(log_m: Fixed) -> str:
    """Which way the evidence points: "more" or "less" engaged than the band says."""
    half = log_m.shape[-1] // 2
    return "more" if int(log_e(log_m[..., :half])) >= int(log_e(log_m[..., half:])) else "less"


def sessions_to_see_nothing(band: Band, run_length: int, slices: int) -> float:
    """About how many sessions an ablated circuit (no token engaged) takes to be seen; infinite where the band reaches down to 0."""
    each = float(betting_table([band], 1)[0, 0].max()) / UNIT
    return (math.log(run_length * slices) + math.log(BETS)) / each if each > 0 else math.inf
