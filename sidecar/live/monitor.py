"""What the hot worker keeps of circuits: activity to sketches and bets, and at a tick's end to evidence. Writes no files."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sidecar.circuits.activity import Reader
from sidecar.circuits.circuit import Bank
from sidecar.circuits.reference import Reference
from sidecar.circuits.sessions import Sessions, Share
from sidecar.circuits.sketch import LiveSketch
from sidecar.circuits.tick import TickRow
from sidecar.circuits.watch import Alarm, Settings, Watch, Watched
from sidecar.config import Circuits as Config
from sidecar.live.counts import CircuitCounts
from sidecar.live.remembered import Identity, Remembered, goes_on, moved
from sidecar.live.steps import Steps, traffic
from sidecar.live.ticks import Alarms, ClosedTicks
from sidecar.live.traces import Traces
from sidecar.reading.circuits import PlannedCircuit
from sidecar.reading.plan import Plan
from sidecar.reading.read import Readings
from sidecar.types import StepBatch

MONTH_S = 30 * 86_400
LONGER = 3  # ticks: a clock that is set back by no more makes the tick that runs longer, and nothing else


class Monitor:
    """The circuits of one plan. Owned by the pipeline's thread.

    source: one run of one replica, as sketches are marked with.
    """

    def __init__(self, plan: Plan, config: Config, share: Share, source: str, ticks: ClosedTicks) -> None:
        self._config = config
        self._generation = plan.generation
        self._baselines = plan.baselines
        self.circuits: tuple[PlannedCircuit, ...] = plan.circuits
        self.bank = Bank(tuple(one.circuit for one in plan.circuits), config.slices)
        self._steps = Steps(plan.circuits, self.bank, requests_are_sessions=config.requests_are_sessions)
        self._reader = Reader(self.bank)
        # Another plan's sketch of the same tick is another source: the two are added, and neither is taken for the other.
        self._sketch = LiveSketch(self.bank, f"{source}-{plan.generation}", config.tick_s)
        self._sessions = Sessions(self.bank, share, config.sessions, secrets.randbits(32))
        self.watch = Watch(self._watched(plan.watched), config.tick_s, Settings(config.run_length, config.cool_down))
        self.counts = CircuitCounts(self.bank)
        self.traces = Traces()
        self.ticks = ticks
        self.tokens_left_out = 0  # by the ladder: read, and not sketched
        self._tick: int | None = None

    def _watched(self, told: Sequence[Watched]) -> list[Watched]:
        """What the baseline says of the circuits as they are served now, here; of others it says nothing."""
        replicas = self._config.replicas  # each has detectors of its own: the budget is split over them, too
        served = {(one.name, one.model_hash, one.spec_hash, one.tokens) for one in self.bank.circuits}
        return [
            replace(one, reference=one.reference.of_one_in(replicas), slices=len(self.bank.slices) * replicas)
            for one in told
            if (one.circuit, one.model_hash, one.spec_hash, one.tokens) in served and one.slice in self.bank.slices
        ]

    def succeed(self, before: Monitor) -> None:
        """Go on where the monitor of the plan before stopped; counts and evidence never start anew.

        Where the circuits and slices are the same, the tick that runs goes on too. Sessions do in every circuit that stays:
        nobody bets twice in it.
        """
        self._tick = before._tick
        if _identity(self.bank) == _identity(before.bank):
            self._sessions, self._sketch, self.traces = before._sessions, before._sketch, before.traces
        elif before._tick is not None:
            before.close()
            self._tick = before._tick + 1  # a tick closes once: what is left of this one counts with the next
            self._sessions.succeed(
                before._sessions, moved(before._sessions.state(), _identity(before.bank), _identity(self.bank))
            )
        self.tokens_left_out = before.tokens_left_out
        self.counts.succeed(before.counts)
        self.watch.restore(_going_on(before.watch, self.watch))

    def remember(self) -> Remembered | None:
        """What `recall` goes on from; None before a tick has closed."""
        state, tick_s = self.watch.state(), self._config.tick_s
        tick = state["tick"]
        if not isinstance(tick, int):
            return None
        return Remembered(tick, tick_s, state, self._baselines, _identity(self.bank), self._sessions.state())

    def recall(self, known: Remembered, unix_s: float) -> int:
        """Go on where a worker that is gone stopped, before the first row. Returns how many detectors do.

        Ticks that nobody saw are no evidence, for or against, and cost the guarantee nothing: E - t stays a supermartingale where
        ticks are left out that nobody has chosen by their outcome. Raises ValueError for what is no state.
        """
        tick = int(unix_s // self._config.tick_s)
        if not goes_on(self._config, known.tick, known.tick_s, tick):
            return 0
        self._sessions.restore(known.sessions_of(_identity(self.bank)))
        self._tick = max(tick, known.tick + 1)
        return self.watch.restore(known.held_against(self._baselines))

    @property
    def nbytes(self) -> int:
        """Of the arrays that sketches, sessions and detectors hold: the same from the first row to the last."""
        return self._sketch.nbytes + self._sessions.nbytes + self.watch.nbytes

    @property
    def false_alarms_promised(self) -> float:
        """In 30 days, at most: each detector has one in ``run_length`` times its slices ticks, as long as its band holds."""
        ticks = MONTH_S / self._config.tick_s
        return sum(ticks / (self._config.run_length * one.slices) for one in self.watch.watched)

    @property
    def sessions(self) -> Sessions:
        return self._sessions

    def account(self, readings: Readings, batch: StepBatch) -> None:
        """Count a step in. After the reply: nobody waits."""
        if readings.circuits is None:
            return
        rows = self._steps.rows(readings.circuits, batch)
        if rows is None or self._tick is None:
            return
        self.ticks.steps.read += 1
        activity = self._reader.read(rows)
        self._sketch.add(activity)
        bets = self._sessions.take(activity, self._tick)
        self._sketch.bet(bets)
        if len(bets.sessions) and batch.segments.traceparents:
            self.traces.note(bets, self._steps.traceparents(batch, rows), self._tick)

    def leave_out(self, batch: StepBatch) -> None:
        """A step that the ladder gave up: no share is taken of it, so that nothing is made of a part."""
        self.tokens_left_out += batch.segments.token_count
        self.ticks.steps.read += _has_traffic(batch)

    def refuse(self, batch: StepBatch) -> None:
        """A step in which something is no number, so that nothing of it was read."""
        self.ticks.steps.refused += _has_traffic(batch)

    def look(self, unix_s: float) -> None:
        """Time passes. Called between two batches, several times a tick."""
        tick = int(unix_s // self._config.tick_s)
        if self._tick is None:
            self._tick = tick
        if tick > self._tick:
            over, self._tick = self._tick, tick
            self._close(over)
        elif tick < self._tick - LONGER:
            self._set_back(tick)

    def _set_back(self, tick: int) -> None:
        """The clock was ahead, and is right now: detectors begin anew, for what came meanwhile was held against wrong hours.

        Sessions that have bet have bet, and what came in since the last tick closed counts with the next one to close.
        """
        self._tick = tick
        self._sketch.set_back()
        self._sessions.set_back(tick)
        self.watch.begin_anew()
        self.ticks.counts.set_back += 1

    def close(self) -> None:
        """The tick that runs is over."""
        if self._tick is not None:
            self._close(self._tick)

    def _close(self, tick: int) -> None:
        if self.ticks.has(tick):  # what came in counts with the next one that has not
            self.ticks.counts.repeated += 1
            self.watch.pass_over(tick)
            return
        self._sketch.short(self._sessions.forget(tick - self._config.session_ticks))
        rows = self._sketch.close(tick)
        alarms = self._take(tick, rows)
        self.counts.add(rows)
        self.ticks.steps.nameless = self._sessions.nameless
        self.ticks.add(self._generation, tick, rows, alarms)

    def _take(self, tick: int, rows: tuple[TickRow, ...]) -> Alarms:
        counted = self.watch.late, self.watch.repeated, self.watch.missed
        known = {(one.circuit, one.slice) for one in self.watch.watched}
        alarms = self.watch.take(tick, (row for row in rows if (row.key.circuit, row.key.slice) in known))
        now = self.watch.late, self.watch.repeated, self.watch.missed
        late, repeated, missed = (b - a for a, b in zip(counted, now, strict=True))
        counts = self.ticks.counts
        counts.late, counts.repeated, counts.missed = (
            counts.late + late,
            counts.repeated + repeated,
            counts.missed + missed,
        )
        return tuple((one, self._traces(one)) for one in alarms)

    def _traces(self, alarm: Alarm) -> tuple[str, ...]:
        watched = alarm.watched
        names = [one.name for one in self.bank.circuits]
        band = watched.reference.band(alarm.tick * self._config.tick_s)
        return self.traces.of(alarm, names.index(watched.circuit), self.bank.slices.index(watched.slice), band)

    def facts(self) -> dict[str, Any]:
        """What is few, as JSON carries it."""
        evidence, silent = self.watch.evidence.tolist(), self.watch.silent_ticks.tolist()
        return {
            "slices": self.bank.slices,
            "watched": [
                [one.circuit, one.slice, log_e, threshold, silence, one.learning]
                for one, log_e, threshold, silence in zip(
                    self.watch.watched, evidence, self.watch.thresholds.tolist(), silent, strict=True
                )
            ],
            "sessions": {name: getattr(self._sessions.counts, name) for name in type(self._sessions.counts).__slots__},
            "sessions_remembered": len(self._sessions),
            "nameless": self._sessions.nameless,
            "tokens_left_out": self.tokens_left_out,
            "bytes": self.nbytes,
            "tick_s": self._config.tick_s,
            "false_alarms_promised": self.false_alarms_promised,
        }


def _has_traffic(batch: StepBatch) -> bool:
    ours = traffic(batch.segments)
    return ours is None or bool(ours.any())


def _going_on(before: Watch, now: Watch) -> dict[str, object]:
    """The state of those detectors whose reference is the same: evidence against another one is no evidence."""
    references = {(one.circuit, one.slice): one.reference for one in now.watched}
    state = before.state()
    state["detectors"] = [
        told
        for told, one in zip(state["detectors"], before.watched, strict=True)  # type: ignore[call-overload]
        if _equal(references.get((one.circuit, one.slice)), one.reference)
    ]
    return state


def _equal(one: Reference | None, other: Reference) -> bool:
    return (
        one is not None
        and one.tolerance == other.tolerance
        and np.array_equal(one.mean, other.mean)
        and np.array_equal(one.half_width, other.half_width)
    )


def _identity(bank: Bank) -> Identity:
    """What is counted, wherever its columns are."""
    return bank.slices, *((one.name, one.spec_hash, one.model_hash) for one in bank.circuits)
