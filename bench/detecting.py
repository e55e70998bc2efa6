"""The shipped detector over many streams at once: what `sidecar.circuits.watch.Watch` does, without a sketch for each tick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.streams import TICK_S, Counts, Kind, stream
from probes.circuits.baseline_fit import AT_LEAST, levels
from sidecar.circuits.detector import BETS, NOTHING, Fixed, advance, betting_table, log_e, log_threshold
from sidecar.circuits.reference import WEEK, Reference, hour_of_week
from sidecar.circuits.watch import Settings

_HOUR = 3600 // TICK_S
_WEEK_TICKS = WEEK * _HOUR


@dataclass(frozen=True, slots=True)
class Found:
    """alarms: of each stream. first: the tick of its first alarm, counted from 1; 0 if it has none.

    highest: of log M, in nats; no E is higher.
    """

    alarms: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    highest: npt.NDArray[np.float64]


def detect(counts: Counts, references: Reference | Sequence[Reference], begin: int = 0, slices: int = 1) -> Found:
    """counts: [streams, T, k+1], with one reference for all or one each. After an alarm it cools down and begins anew."""
    settings = Settings()
    streams, ticks, width = counts.shape
    log_m = np.full((streams, BETS), NOTHING)
    threshold = log_threshold(settings.run_length, slices)
    cooling, alarms, first = (np.zeros(streams, np.int64) for _ in range(3))
    highest = np.full(streams, NOTHING)
    for tick, table in enumerate(_tables(references, begin, ticks, width - 1)):
        log_m = advance(log_m, counts[:, tick], table)
        log_m[cooling > 0] = NOTHING
        most = log_m.max(axis=1)
        alarm = most >= threshold
        if alarm.any():  # a mean is never above the largest
            alarm &= log_e(log_m) >= threshold
        cooling = np.where(alarm, settings.cool_down, np.maximum(cooling - 1, 0))
        if alarm.any():
            log_m[alarm] = NOTHING
            alarms += alarm
            first[alarm & (first == 0)] = tick + 1
        np.maximum(highest, most, out=highest)
    return Found(alarms, first, highest / (1 << 24))


def learned(kind: Kind, weeks: int, rng: np.random.Generator, tolerance: float = AT_LEAST) -> Reference:
    """The reference that `probes baseline fit` makes of so many weeks, at the smallest tolerance that it ships."""
    return reference_of(stream(kind, weeks * _WEEK_TICKS, rng)[0], tolerance)


def reference_of(history: Counts, tolerance: float = AT_LEAST) -> Reference:
    """history: [T, k+1], from tick 0."""
    hours = np.array([hour_of_week(tick * TICK_S) for tick in range(len(history))])
    by_hour = np.zeros((WEEK, 1, history.shape[-1]), np.int64)
    np.add.at(by_hour[:, 0], hours, history)
    found = levels(by_hour)
    return Reference(found.mean[0].astype(np.float64), found.half_width[0].astype(np.float64), tolerance)


def flat(mean: float, half_width: float = 0.0, tolerance: float = AT_LEAST) -> Reference:
    """One reference for all hours."""
    return Reference(np.array([mean]), np.array([half_width]), tolerance)


def _tables(references: Reference | Sequence[Reference], begin: int, ticks: int, tokens: int) -> Iterator[Fixed]:
    """[streams or 1, k+1, 12] of each tick."""
    each = [references] if isinstance(references, Reference) else references
    made: dict[int, Fixed] = {}
    for tick in range(begin, begin + ticks):
        bucket = hour_of_week(tick * TICK_S)
        if bucket not in made:
            made[bucket] = betting_table([one.band(tick * TICK_S) for one in each], tokens)
        yield made[bucket]
