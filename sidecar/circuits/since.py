"""What traffic says of circuits since a moment: an e-value each, against the baseline that they had before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sidecar.circuits.detector import (
    BETS,
    NOTHING,
    UNIT,
    Fixed,
    advance,
    betting_table,
    leans,
    log_e,
    sessions_to_see_nothing,
)
from sidecar.circuits.merge import merge
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Watched


@dataclass(frozen=True, slots=True)
class Since:
    """One circuit. log_e: of E_t / t, the mean over its slices; -inf where no session bet. leans: "more" or "less" engaged.

    needed: about how many sessions it would take to tell that it stopped; infinite where its baseline reaches down to 0.
    model_hash: of the weights that it was seen on, "" if it was not.
    """

    circuit: str
    sessions: int
    log_e: float
    leans: str
    needed: float
    model_hash: str


@dataclass(frozen=True, slots=True)
class Span:
    """``ticks`` ticks of ``tick_s`` seconds from ``first`` on: how many was chosen before anybody looked."""

    first: int
    ticks: int
    tick_s: int

    def __contains__(self, tick: int) -> bool:
        return self.first <= tick < self.first + self.ticks


def since(rows: Iterable[TickRow], watched: Sequence[Watched], span: Span, alpha: float) -> tuple[Since, ...]:
    """Every circuit of ``watched``, in their order, for `e_bh` at level ``alpha``.

    A detector that begins with the span and never alarms has E_t - t for a supermartingale while its baseline holds, so E_t / t has
    mean at most 1 after any number t of ticks that was chosen beforehand. Ticks in which nobody bet are among them: E does not grow
    by them, and how many there are is left to chance. A mean of e-values is one, however a circuit's slices depend on each other.

    The model may be another than the baseline's: whether its circuits still do what they did is the question then, and rows of the
    old one are left out. Raises SketchError for rows that cannot be merged.
    """
    specs = {(one.circuit, one.slice): one.spec_hash for one in watched}
    own = [row for row in rows if row.key.tick in span and specs.get(_place(row)) == row.key.spec_hash]
    model = _model(own, {one.model_hash for one in watched})
    merged = merge(row for row in own if row.key.model_hash == model).rows
    names = dict.fromkeys(one.circuit for one in watched)
    return tuple(
        _told([one for one in watched if one.circuit == name], merged, span, len(names) / alpha) for name in names
    )


def _place(row: TickRow) -> tuple[str, str]:
    return row.key.circuit, row.key.slice


def _model(rows: Sequence[TickRow], before: set[str]) -> str:
    """The newest of those that served, another one than the baseline's if there is."""
    newest = max(rows, key=lambda row: (row.key.model_hash not in before, row.key.tick), default=None)
    return "" if newest is None else newest.key.model_hash


def _told(slices: Sequence[Watched], merged: Sequence[TickRow], span: Span, odds: float) -> Since:
    """odds: what the e-value of a single circuit must reach."""
    each = {one.slice: [row for row in merged if _place(row) == (one.circuit, one.slice)] for one in slices}
    states = np.stack([_run(one, each[one.slice]) for one in slices])  # [S, 12]
    e_values = [int(one) / UNIT if one > NOTHING else -math.inf for one in log_e(states).tolist()]
    needed = (
        sessions_to_see_nothing(one.reference.band(span.first * span.tick_s), math.ceil(odds * span.ticks), len(slices))
        for one in slices
    )
    seen = [row for rows in each.values() for row in rows if row.evidence.any()]
    return Since(
        slices[0].circuit,
        sum(int(row.evidence.sum()) for row in seen),
        _log_mean(e_values) - math.log(span.ticks),
        leans(states.max(axis=0)),
        min(needed),
        seen[0].key.model_hash if seen else "",
    )


def _run(one: Watched, rows: Sequence[TickRow]) -> Fixed:
    """[12], log M after all of them."""
    log_m, tables = np.full(BETS, NOTHING), dict[int, Fixed]()
    for row in sorted(rows, key=lambda row: row.key.tick):
        bucket = one.reference.bucket(row.key.at_s)
        if bucket not in tables:
            tables[bucket] = betting_table([one.reference.band(row.key.at_s)], one.tokens)[0]
        log_m = advance(log_m, row.evidence, tables[bucket])
    return log_m


def _log_mean(logs: Sequence[float]) -> float:
    highest = max(logs)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(one - highest) for one in logs) / len(logs))
