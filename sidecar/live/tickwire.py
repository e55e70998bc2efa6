"""Closed ticks and canaries' rows on their way from the worker: JSON for what is few, plain numbers behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from sidecar.circuits.tick import Shape, TickKey, TickRow
from sidecar.circuits.watch import Alarm, Checkpoint
from sidecar.live.canary_rows import CanaryRow
from sidecar.live.ticks import ClosedTick, StepCounts

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class ToldAlarm:
    """An alarm without what the plan knows: `Watched` is found there, by circuit and slice."""

    circuit: str
    slice: str
    tick: int
    log_e: int
    log_threshold: int
    leans: str
    since: Checkpoint
    trace_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToldTick:
    """A `ClosedTick` as it arrives."""

    number: int
    generation: int
    tick: int
    rows: tuple[TickRow, ...]
    alarms: tuple[ToldAlarm, ...]
    steps: StepCounts


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that the worker had to tell."""

    ticks: tuple[ToldTick, ...]
    canaries: tuple[CanaryRow, ...]
    generation: int = 0  # of the plan in force; 0: there is none
    state: bytes = b""  # of the detectors when the last of these ticks had closed; nothing without any


def write(
    memory: int,
    ticks: Sequence[ClosedTick],
    canaries: Sequence[CanaryRow],
    generation: int = 0,
    state: bytes = b"",
) -> int:
    """Fill a descriptor's memory; returns how many bytes."""
    facts = {
        "ticks": [
            [
                one.number,
                one.generation,
                one.tick,
                [_packed(row) for row in one.rows],
                [packed_alarm(*alarm) for alarm in one.alarms],
                astuple(one.steps),
            ]
            for one in ticks
        ],
        "canaries": [[one.generation, one.name, one.offset, len(one.values)] for one in canaries],
        "generation": generation,
        "state": len(state),
    }
    counts = [row.counts.tobytes() for one in ticks for row in one.rows]
    values = [one.values.tobytes() for one in canaries]
    text = json.dumps(facts).encode()
    data = b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *counts, *values, state))
    os.ftruncate(memory, 0)
    return os.pwrite(memory, data, 0)


def read(memory: int, size: int) -> Told:
    """What ``write`` has put there."""
    data = os.pread(memory, size, 0)
    begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    facts = json.loads(data[_LENGTH_BYTES:begin])
    left = _Left(data, begin)
    ticks = tuple(
        ToldTick(number, generation, tick, tuple(left.rows(rows)), tuple(map(told_alarm, alarms)), StepCounts(*steps))
        for number, generation, tick, rows, alarms, steps in facts["ticks"]
    )
    canaries = tuple(
        CanaryRow(generation, name, offset, left.take(np.dtype(np.float32), many))
        for generation, name, offset, many in facts["canaries"]
    )
    return Told(ticks, canaries, facts["generation"], left.take(np.dtype(np.uint8), facts["state"]).tobytes())


class _Left:
    """Numbers that are not yet read."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, dtype: np.dtype[Any], many: int) -> Any:
        found = np.frombuffer(self._data, dtype, many, self._at).copy()
        self._at += found.nbytes
        return found

    def rows(self, told: Sequence[Sequence[Any]]) -> Iterator[TickRow]:
        for *key, sources, nodes, tokens in told:
            shape = Shape(nodes, tokens)
            yield TickRow(TickKey(*key), tuple(sources), shape, self.take(np.dtype(np.int64), shape.width))


def _packed(row: TickRow) -> list[Any]:
    key = row.key
    return [
        *(key.model_hash, key.spec_hash, key.circuit, key.slice, key.tick_s, key.tick),
        *(row.sources, row.shape.nodes, row.shape.tokens),
    ]


def packed_alarm(alarm: Alarm, trace_ids: Sequence[str]) -> list[Any]:
    """As JSON carries it; `told_alarm` takes it apart."""
    watched, since = alarm.watched, alarm.since
    return [
        *(watched.circuit, watched.slice, alarm.tick, alarm.log_e, alarm.log_threshold, alarm.leans),
        *(since.tick, since.log_m, trace_ids),
    ]


def told_alarm(told: Sequence[Any]) -> ToldAlarm:
    """Raises ValueError or TypeError if it is none."""
    circuit, name, tick, log_e, threshold, leans, since, log_m, trace_ids = told
    return ToldAlarm(circuit, name, tick, log_e, threshold, leans, Checkpoint(since, tuple(log_m)), tuple(trace_ids))
