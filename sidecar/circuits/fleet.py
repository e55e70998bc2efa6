"""One detector over a merged archive: whether all replicas together would have alarmed, where each by itself runs its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sidecar.circuits.merge import SketchError, merge
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Alarm, Settings, Watch, Watched


@dataclass(frozen=True, slots=True)
class Detected:
    """What the detectors of all circuits and slices made of it.

    sessions: that bet, of each. passed_over: rows of what is not watched.
    """

    watch: Watch
    alarms: tuple[Alarm, ...]
    sessions: dict[tuple[str, str], int]
    ticks: int
    passed_over: int


def detect(rows: Iterable[TickRow], watched: Sequence[Watched], tick_s: int, settings: Settings) -> Detected:
    """Run the live detectors over sketches, which are merged first: the same arithmetic, and so the same bits.

    Raises SketchError: for rows of another model or spec than ``watched``, of ticks of another length, or that cannot be merged.
    """
    watch = Watch(watched, tick_s, settings)
    sessions = {(one.circuit, one.slice): 0 for one in watched}
    alarms: list[Alarm] = []
    ticks = passed_over = 0
    for tick, of_tick in groupby(_in_order(merge(rows).rows, tick_s), lambda row: row.key.tick):
        known = []
        for row in of_tick:
            key = (row.key.circuit, row.key.slice)
            if key in sessions:
                known.append(row)
                sessions[key] += int(row.evidence.sum())
            else:
                passed_over += 1
        alarms += watch.take(tick, known)
        ticks += 1
    return Detected(watch, tuple(alarms), sessions, ticks, passed_over)


def _in_order(rows: Sequence[TickRow], tick_s: int) -> list[TickRow]:
    for row in rows:
        if row.key.tick_s != tick_s:
            raise SketchError(f"{row.key.circuit}: ticks of {row.key.tick_s} s, and the baseline is of {tick_s} s")
    return sorted(rows, key=lambda row: row.key.tick)
