"""Every detector of a sidecar, side by side: one tick's evidence in, alarms out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sidecar.circuits.circuit import TOKENS
from sidecar.circuits.detector import (
    BETS,
    NOTHING,
    RUN_LENGTH,
    Fixed,
    advance,
    betting_table,
    leans,
    log_e,
    log_threshold,
)
from sidecar.circuits.merge import OtherHashError
from sidecar.circuits.reference import Reference
from sidecar.circuits.tick import TickRow
from sidecar.types import BoolArray


@dataclass(frozen=True, slots=True)
class Settings:
    """run_length: ticks to a false alarm, at least, of each circuit. cool_down: ticks after an alarm in which no other comes.

    checkpoint: a replay begins between once and twice so many ticks before its alarm.
    """

    run_length: int = RUN_LENGTH
    cool_down: int = 60
    checkpoint: int = 120


@dataclass(frozen=True, slots=True)
class Watched:
    """A circuit in one slice, and what is sound there. slices: how many the circuit's budget is split over.

    learning: under a week of history: its alarms are shown, and page nobody.
    """

    circuit: str
    slice: str
    model_hash: str
    spec_hash: str
    tokens: int
    reference: Reference
    slices: int = 1
    learning: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a detector knew when ``tick`` had closed: where a replay begins. log_m: 12 integers in 2^-24ths."""

    tick: int
    log_m: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """The evidence of one detector has reached its threshold. Both are logarithms in 2^-24ths."""

    watched: Watched
    tick: int
    log_e: int
    log_threshold: int
    leans: str  # "more" or "less" engaged than in sound traffic
    since: Checkpoint


class Watch:
    """The detectors of circuits and slices. One thread's. State: 12 integers each, and two checkpoints of them."""

    def __init__(self, watched: Sequence[Watched], tick_s: int, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.watched = tuple(watched)
        self._tick_s = tick_s
        self._place = {(one.circuit, one.slice): at for at, one in enumerate(self.watched)}
        if len(self._place) != len(self.watched):
            raise ValueError("a circuit is watched once in each slice")
        count = len(self.watched)
        thresholds = [log_threshold(self.settings.run_length, one.slices) for one in self.watched]
        self._thresholds = np.array(thresholds, np.int64)
        self._log_m = np.full((count, BETS), NOTHING)
        self._marks = np.full((2, count, BETS), NOTHING)  # the older checkpoint, the newer one
        self._mark_ticks = np.zeros((2, count), np.int64)
        self._cooling = np.zeros(count, np.int64)
        self._silent = np.zeros(count, np.int64)
        self._last_tick: int | None = None
        self.late = 0  # ticks that came after a later one: in the archive, and no evidence
        self.repeated = 0  # the last tick once more
        self.missed = 0  # ticks that never came

    @property
    def evidence(self) -> Fixed:
        """[watched], log E in 2^-24ths: a copy."""
        return log_e(self._log_m)

    @property
    def thresholds(self) -> Fixed:
        """[watched], what log E must reach: a copy."""
        return self._thresholds.copy()

    @property
    def silent_ticks(self) -> Fixed:
        """[watched], ticks since a session bet, of hours that bring enough of them: a copy. No data is an alert of its own."""
        return self._silent.copy()

    @property
    def nbytes(self) -> int:
        """Of all arrays that last, the references apart, which are the plan's."""
        held = (self._log_m, self._marks, self._mark_ticks, self._cooling, self._silent, self._thresholds)
        return sum(one.nbytes for one in held)

    def take(self, tick: int, rows: Iterable[TickRow]) -> tuple[Alarm, ...]:
        """The sketches of one tick, merged over replicas. Ticks come in order; one that does not is counted, and changes nothing.

        Rows of what is not watched are passed over. Raises OtherHashError for rows of another model or spec, ValueError for
        rows of another tick or two rows of one slice.
        """
        evidence = self._evidence(tick, rows)
        if self._last_tick is not None and tick <= self._last_tick:
            self.repeated += tick == self._last_tick
            self.late += tick < self._last_tick
            return ()
        self.missed += 0 if self._last_tick is None else tick - self._last_tick - 1
        self._begin(tick)
        self._last_tick = tick
        at_s = tick * self._tick_s
        expects = np.array([one.reference.expects(at_s) for one in self.watched], np.bool_)  # silence is news then
        self._silent = np.where(evidence.any(axis=1), 0, self._silent + expects)
        moved = advance(self._log_m, evidence, self._tables(at_s))
        cooling = self._cooling > 0
        self._log_m = np.where(cooling[:, None], NOTHING, moved)
        self._cooling -= cooling
        reached = log_e(self._log_m)
        made = tuple(
            self._alarm(at, tick, int(reached[at])) for at in np.flatnonzero(reached >= self._thresholds).tolist()
        )
        self._checkpoint(tick, cooling)
        return made

    def begin_anew(self) -> None:
        """Forget all evidence, and which ticks there were: time goes on at another one. Who cools or is silent still is."""
        self._log_m.fill(NOTHING)
        self._marks.fill(NOTHING)
        self._last_tick = None  # the next tick's checkpoint is just before it

    def pass_over(self, tick: int) -> None:
        """The archive has rows of ``tick`` from another time, which a replay would take for evidence: none goes on beyond it."""
        if self._last_tick is not None and tick > self._last_tick:
            self.begin_anew()

    def state(self) -> dict[str, object]:
        """Everything that it remembers, as JSON carries it."""
        return {
            "tick": self._last_tick,
            "detectors": [
                {
                    "circuit": one.circuit,
                    "slice": one.slice,
                    "model_hash": one.model_hash,
                    "spec_hash": one.spec_hash,
                    "log_m": self._log_m[at].tolist(),
                    "marks": self._marks[:, at].tolist(),
                    "mark_ticks": self._mark_ticks[:, at].tolist(),
                    "cooling": int(self._cooling[at]),
                    "silent": int(self._silent[at]),
                }
                for at, one in enumerate(self.watched)
            ],
        }

    def restore(self, state: dict[str, object]) -> int:
        """Go on from `state`; detectors of other hashes begin anew. Returns how many went on. Raises ValueError for no state."""
        found = 0
        try:
            tick = state["tick"]
            self._last_tick = None if tick is None else int(tick)  # type: ignore[call-overload]
            self._mark_ticks.fill(self._last_tick or 0)  # whoever begins anew begins now
            for one in state["detectors"]:  # type: ignore[attr-defined]
                at = self._place.get((one["circuit"], one["slice"]))
                if at is None or (one["model_hash"], one["spec_hash"]) != self._hashes(at):
                    continue
                self._log_m[at], self._marks[:, at] = one["log_m"], one["marks"]
                self._mark_ticks[:, at], self._cooling[at] = one["mark_ticks"], one["cooling"]
                self._silent[at] = one["silent"]
                found += 1
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("this is no state of detectors") from None
        return found

    def _hashes(self, at: int) -> tuple[str, str]:
        return self.watched[at].model_hash, self.watched[at].spec_hash

    def _evidence(self, tick: int, rows: Iterable[TickRow]) -> Fixed:
        evidence = np.zeros((len(self.watched), max(TOKENS) + 1), np.int64)
        taken = set()
        for row in rows:
            at = self._place.get((row.key.circuit, row.key.slice))
            if at is None:
                continue
            if (row.key.model_hash, row.key.spec_hash) != self._hashes(at) or row.shape.tokens != self.watched[
                at
            ].tokens:
                raise OtherHashError(f"{row.key.circuit}: a sketch of another model or spec than is watched")
            if (row.key.tick, row.key.tick_s) != (tick, self._tick_s) or at in taken:
                raise ValueError(f"{row.key.circuit}: want one row of tick {tick}, of {self._tick_s} s")
            taken.add(at)
            evidence[at, : row.shape.tokens + 1] = row.evidence
        return evidence

    def _tables(self, at_s: int) -> Fixed:
        """[watched, 9, 12], for one tick. Not kept: nearly three times what a detector holds, and soon made for all at once."""
        tables = np.zeros((len(self.watched), max(TOKENS) + 1, BETS), np.int64)
        for tokens in TOKENS:
            at = [place for place, one in enumerate(self.watched) if one.tokens == tokens]
            if at:
                bands = [self.watched[place].reference.band(at_s) for place in at]
                tables[at, : tokens + 1] = betting_table(bands, tokens)
        return tables

    def _alarm(self, at: int, tick: int, reached: int) -> Alarm:
        since = Checkpoint(int(self._mark_ticks[0, at]), tuple(self._marks[0, at].tolist()))
        alarm = Alarm(self.watched[at], tick, reached, int(self._thresholds[at]), leans(self._log_m[at]), since)
        self._log_m[at] = self._marks[:, at] = NOTHING
        self._mark_ticks[:, at] = tick
        self._cooling[at] = self.settings.cool_down
        return alarm

    def _begin(self, tick: int) -> None:
        """The first tick's checkpoint is just before it."""
        if self._last_tick is None:
            self._mark_ticks.fill(tick - 1)

    def _checkpoint(self, tick: int, cooled: BoolArray) -> None:
        """While cooling, a replay would begin now; else at the older of two marks, that far apart."""
        cooling = cooled | (self._cooling > 0)  # also those for which this tick was the last one
        self._mark_ticks[:, cooling] = tick
        due = ~cooling & (tick - self._mark_ticks[1] >= self.settings.checkpoint)
        self._marks[0, due], self._mark_ticks[0, due] = self._marks[1, due], self._mark_ticks[1, due]
        self._marks[1, due], self._mark_ticks[1, due] = self._log_m[due], tick
