"""Which of many e-values are too large for chance: e-BH, for any dependence between them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def e_bh(log_e: Sequence[float], alpha: float) -> tuple[bool, ...]:
    """Reject the k largest of K e-values, k the largest number for which the k-th largest is at least K / (alpha k).

    log_e: their natural logarithms, -inf for 0; each e-value has mean at most 1 under its own hypothesis. Of what is rejected at
    most the share ``alpha`` is false in expectation, however they depend on each other: Wang and Ramdas, "False discovery rate
    control with e-values" (2022), the base e-BH procedure. Raises ValueError for a NaN, or an alpha that is no share.

    >>> e_bh([math.log(25), math.log(14), math.log(9)], 0.2)  # want 15, 7.5 and 5
    (True, True, True)
    >>> e_bh([math.log(14), 0.0, 0.0], 0.2)
    (False, False, False)
    """
    if not 0 < alpha < 1 or any(math.isnan(one) for one in log_e):
        raise ValueError("want e-values that are numbers, and a share alpha")
    highest = sorted(log_e, reverse=True)
    passing = (one for k, one in enumerate(highest, 1) if one >= math.log(len(highest) / (alpha * k)))
    least = min(passing, default=math.inf)
    return tuple(one >= least and one > -math.inf for one in log_e)
