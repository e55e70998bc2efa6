"""Tables of isotonic calibrations, as hypothesis draws them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from pydantic import ValidationError

from probes.manifest import KNOTS, Calibration

SCORES = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Sound ones, flat stretches and steep ones among them."""
    scores = draw(st.lists(SCORES, min_size=2, max_size=KNOTS, unique=True).filter(lambda one: np.ptp(one) > 0))
    shares = draw(
        st.lists(st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.9, 1.0]), min_size=len(scores), max_size=len(scores))
    )
    table = tuple(zip(sorted(scores), sorted(shares), strict=True))
    try:
        Calibration(kind="isotonic", knots=table)
    except ValidationError:
        return np.array([[0.0, 0.0], [1.0, 1.0]])  # knots closer together than a float can tell
    return np.array(table)
