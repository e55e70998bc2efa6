"""Signals of one request that take in the same rows in the same way go together: mostly all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from sidecar.judge.kinds import CountArray, DoubleArray
from sidecar.types import BoolArray, FloatArray, IndexArray


def alike(
    windows: Sequence[int], counts: CountArray, values: FloatArray, valid: BoolArray
) -> Iterator[tuple[IndexArray, DoubleArray]]:
    """(signals [P], their valid readings [n, P]) for every group of one window, one count and one choice of rows; n >= 1.

    windows, counts: [M] of one request; values [T, C], C a multiple of M; valid [T, M]. With C > M the readings are [n, P, C / M].
    """
    groups: defaultdict[tuple[int, int, bytes], list[int]] = defaultdict(list)
    for place, (window, count) in enumerate(zip(windows, counts.tolist(), strict=True)):
        groups[window, count, valid[:, place].tobytes()].append(place)
    several = values.reshape(len(values), len(windows), -1)  # [T, M, C / M]
    for places in groups.values():
        rows = valid[:, places[0]]
        if rows.any():
            chosen = several[rows][:, places].astype(np.float64)
            yield np.array(places), chosen[:, :, 0] if chosen.shape[2] == 1 else chosen
