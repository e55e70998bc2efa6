"""Signals of one request that take in the same rows in the same way go together: mostly all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sidecar.judge.kinds import CountArray, DoubleArray, Grouped
from sidecar.types import IndexArray


class Alike(NamedTuple):
    """Several signals of one request, and what they take in."""

    group: int
    slot: int
    places: IndexArray  # [P], the signals
    seen: int  # how many readings they have had before
    readings: DoubleArray  # [n, P], or [n, P, C / M] where signals have several columns; n >= 1


def alike(windows: Sequence[int], rows: Grouped, counts: CountArray) -> Iterator[Alike]:
    """Of every request, signals of one window, one count and one choice of rows. windows: [M]; counts: [G, M] before these rows."""
    stops = rows.starts + rows.lengths
    for group, (start, stop) in enumerate(zip(rows.starts.tolist(), stops.tolist(), strict=True)):
        values, valid = rows.values[start:stop], rows.valid[start:stop]
        together: defaultdict[tuple[int, int, bytes], list[int]] = defaultdict(list)
        for place, (window, count) in enumerate(zip(windows, counts[group].tolist(), strict=True)):
            together[window, count, valid[:, place].tobytes()].append(place)
        several = values.reshape(len(values), len(windows), -1)  # [T, M, C / M]
        for (_, count, _), places in together.items():
            chosen = several[valid[:, places[0]]][:, places].astype(np.float64)
            if len(chosen):
                readings = chosen[:, :, 0] if chosen.shape[2] == 1 else chosen
                yield Alike(group, int(rows.slots[group]), np.array(places), count, readings)
