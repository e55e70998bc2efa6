"""A positive control reads its own block in range whatever the text says, and rows of other blocks out of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from probes.control import Range, fit_control

WIDTH = 12


def layered(count: int, seed: int) -> dict[int, npt.NDArray[np.float64]]:
    """Rows of five blocks: the same tokens, moved a little further by every block."""
    rng = np.random.default_rng(seed)
    tokens, step = rng.standard_normal((count, WIDTH)), np.linspace(0.4, 2.0, WIDTH)
    return {layer: tokens + layer * step + 0.1 * rng.standard_normal((count, WIDTH)) for layer in range(6, 11)}


def test_control_reads_its_own_block_in_range_and_others_out_of_it() -> None:
    control = fit_control(layered(2000, seed=0), 8)
    held_out = layered(2000, seed=1)
    outside = {layer: control.range.outside(control.direction.read(rows)) for layer, rows in held_out.items()}
    assert outside[8] < 0.02
    assert outside[6] > 0.95
    assert outside[10] > 0.95


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 5.0])
def test_what_is_not_in_range_is_outside(value: float) -> None:
    assert Range(-1.0, 1.0).outside(np.array([0.0, -1.0, 1.0, value])) == 0.25
