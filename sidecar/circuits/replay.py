"""An alarm, computed again: from its record alone, and from the archive that its evidence is in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.circuits.archive import ArchiveError, digest_of, read_archive
from sidecar.circuits.detector import UNIT, log_threshold
from sidecar.circuits.merge import merge
from sidecar.circuits.record import AlarmRecord, recompute
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Watched


@dataclass(frozen=True, slots=True)
class Against:
    """A baseline to hold a record against. run_length: ticks to a false alarm of a circuit, which its threshold was made of."""

    digest: str
    watched: tuple[Watched, ...]
    run_length: int


def differences(record: AlarmRecord, folder: Path, baseline: Against | None = None) -> list[str]:
    """What is not as the record says, in words; empty if all of it that can be computed again is the same, to the last bit.

    folder: where the archive's files lie. Without a baseline its bands and its threshold are believed; diagnosis,
    configuration and traces always are. Raises ArchiveError if a file is missing or unsound, SketchError if its rows
    contradict each other.
    """
    found = [*_arithmetic(record), *_archive(record, folder)]
    if baseline is not None:
        found += _baseline(record, baseline)
    return found


def _arithmetic(record: AlarmRecord) -> Iterator[str]:
    computed, leans = recompute(record)
    for one, again in zip(record.trace, computed, strict=True):
        if one.log_e != again:
            yield f"tick {one.tick}: log E is {again}, the record says {one.log_e}"
    if record.log_e != record.trace[-1].log_e:
        yield f"the alarm's log E {record.log_e} is not its last tick's {record.trace[-1].log_e}"
    if record.leans != leans:
        yield f"the evidence leans to {leans} engaged, the record says {record.leans}"
    if record.log_e < record.log_threshold:
        yield f"log E {record.log_e} is below the threshold {record.log_threshold}: this is no alarm"


def _archive(record: AlarmRecord, folder: Path) -> Iterator[str]:
    rows: list[TickRow] = []
    for one in record.archives:
        path = folder / Path(one.name).name
        if not path.is_file():
            raise ArchiveError(f"{path} is not there: give the archive's folder with --archive")
        if digest_of(path) != one.digest:
            yield f"{one.name}: its bytes are not those that the alarm was raised on"
        rows += read_archive(path)
    first, last = record.trace[0].tick, record.trace[-1].tick
    archived = {
        row.key.tick: row
        for row in merge(row for row in rows if _is_of(record, row)).rows
        if first <= row.key.tick <= last and row.evidence.any()
    }
    told = {one.tick: one.evidence for one in record.trace}
    for tick in sorted(archived.keys() | told.keys()):
        counts = tuple(archived[tick].evidence.tolist()) if tick in archived else None
        if counts != told.get(tick):
            yield f"tick {tick}: the archive has {counts}, the record {told.get(tick)}"


def _is_of(record: AlarmRecord, row: TickRow) -> bool:
    key = row.key
    return (key.circuit, key.slice, key.model_hash, key.spec_hash, key.tick_s) == (
        record.circuit,
        record.slice,
        record.model_hash,
        record.spec_hash,
        record.tick_s,
    )


def _baseline(record: AlarmRecord, against: Against) -> Iterator[str]:
    if against.digest != record.baseline_digest:
        yield f"the baseline is {against.digest[:12]}, the alarm was raised against {record.baseline_digest[:12]}"
    own = next((one for one in against.watched if (one.circuit, one.slice) == (record.circuit, record.slice)), None)
    if own is None:
        yield f"the baseline knows nothing of {record.circuit} in {record.slice}"
        return
    if not _is_threshold(record.log_threshold, against.run_length, own.slices):
        yield (
            f"the threshold {record.log_threshold} is not that of one false alarm in {against.run_length} ticks, split over the "
            f"circuit's {own.slices} slices or more (replicas); --run-length says it if circuits.run_length was another"
        )
    if record.pages and own.learning:
        yield "the record says that it pages, on a baseline that is still learning"
    for one in record.trace:
        band = own.reference.band(one.tick * record.tick_s)
        if (band.low, band.high) != (one.low, one.high):
            yield f"tick {one.tick}: the baseline's band is [{band.low}, {band.high}], the record's [{one.low}, {one.high}]"


def _is_threshold(told: int, run_length: int, slices: int) -> bool:
    """Whether it is a circuit's budget over whole parts: one for each slice on each replica, in the baseline or not."""
    parts = round(math.exp(min(told / UNIT, 64.0)) / run_length)
    return parts >= slices and told == log_threshold(run_length, parts)
