"""Proof that silence is not health: expected against seen, per tap point, and a control that must read right.

*Expected* comes from the engines' traffic reports (their scheduler's counts), *seen* from rows that arrived. A report comes
after the batches that it speaks of, so seen is at least expected whenever one arrives; rows may run ahead of their report.
Missing tokens are, engine by engine, the running maximum of expected - seen: it only grows when tokens are truly lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

from sidecar.clock import Clock
from sidecar.config import Coverage as CoverageConfig
from sidecar.reading.engines import Engine
from sidecar.reading.plan import Plan
from sidecar.reading.read import TapRead
from sidecar.snapshot import CoverageSnapshot
from sidecar.types import EngineId, Stack, TapLedgerCounts, TapPoint, TrafficReport, UnseenReason

_SAMPLE_S = 0.2  # finer than the lag by far, and few enough to keep
_MIN_CONTROL_ROWS = 20  # below, one odd token could turn a tap point blind


@dataclass(slots=True)
class _Sample:
    """The counts of one moment; the first one is that of a tap point's beginning."""

    at_s: float = -math.inf
    expected: int = 0
    missing: int = 0
    dropped: int = 0
    control_rows: int = 0
    control_in_range: int = 0


@dataclass(slots=True)
class _Tap:
    """Counts of one tap point since it came into the plan."""

    has_control: bool
    expected: int = 0
    seen: int = 0
    missing: int = 0
    control_rows: int = 0
    control_in_range: int = 0
    parted: str = ""  # why expected and seen have parted; kept while no traffic could show otherwise
    samples: deque[_Sample] = field(default_factory=lambda: deque([_Sample()]))


class Coverage:
    """Counts and judges what was seen. Owned by the pipeline's thread."""

    def __init__(self, config: CoverageConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._engines: dict[EngineId, Engine] = {}
        self._complete_s = clock.monotonic_s()  # when as many engines as there must be were last there
        self._taps: dict[TapPoint, _Tap] = {}
        self.unseen = dict.fromkeys(UnseenReason, 0)
        self.taps = TapLedgerCounts()  # what all taps said of the batches they made, those that left included

    def bind(self, plan: Plan) -> None:
        """Follow the plan's tap points: new ones start at zero, others go on."""
        self._taps = {where: self._taps.get(where) or _Tap(has_control=True) for where in plan.taps}
        for where, tap in self._taps.items():
            circuits_only = not plan.reads_signals(where)  # their control are the canaries: see circuits
            tap.has_control = circuits_only or plan.taps[where].control is not None

    # engines

    def register(self, report: TrafficReport) -> None:
        """An engine is there; ``report`` is what it had computed before.

        An engine that we know and whose counts went on is held to its last report: what it computed while it was away from
        us is expected. Otherwise one of the two has started anew, and the count starts here. One that was lost stays lost
        until something comes from it.
        """
        now = self._clock.monotonic_s()
        known = self._engines.get(report.engine_id)
        if known is not None and known.goes_on(report):
            known.registered_s = now
        else:
            self._engines[report.engine_id] = Engine(now, report, lost_s=None if known is None else known.lost_s)
        self._check_complete()

    def knows(self, engine: EngineId) -> bool:
        return engine in self._engines

    def streams(self, engine: EngineId) -> bool:
        """Whether the engine has an open stream."""
        return engine in self._engines and self._engines[engine].streams > 0

    @property
    def serving(self) -> bool:
        """Whether rows of the model in force may still come."""
        now = self._clock.monotonic_s()
        return any(engine.serves(now, self._config.report_s) for engine in self._engines.values())

    def make_room(self, limit: int) -> bool:
        """Whether another engine may register; lost ones give way, the longest lost first."""
        while len(self._engines) >= limit:
            lost = [(one.lost_s, name) for name, one in self._engines.items() if one.lost_s is not None]
            if not lost:
                return False
            del self._engines[min(lost)[1]]
        return True

    def retire_all(self) -> None:
        """Another model takes over: what was known of the engines of the old one is of no use."""
        self._engines.clear()

    @property
    def connected(self) -> int:
        return sum(engine.streams > 0 for engine in self._engines.values())

    def stream_opened(self, engine: EngineId) -> None:
        if engine in self._engines:
            self._engines[engine].streams += 1
            self._engines[engine].lost_s = None
            self._check_complete()

    def stream_closed(self, engine: EngineId) -> None:
        self._check_complete()
        known = self._engines.get(engine)
        if known is not None:
            known.streams = max(0, known.streams - 1)
            if known.streams == 0:
                known.lost_s = self._clock.monotonic_s()

    def goodbye(self, engine: EngineId) -> None:
        self._check_complete()
        self._engines.pop(engine, None)

    def _check_complete(self) -> None:
        if sum(engine.lost_s is None for engine in self._engines.values()) >= self._config.engines:
            self._complete_s = self._clock.monotonic_s()

    # counts

    def report(self, report: TrafficReport) -> None:
        """Book what an engine computed since its last report; a count that shrank means that the engine started anew."""
        engine = self._engines[report.engine_id]
        engine.reported_s = self._clock.monotonic_s()
        before: TrafficReport | None = engine.last
        if engine.last.tokens_computed > report.tokens_computed:
            before = None
            engine.shares.clear()
        engine.last = report
        unseen = _grown(dict(report.unseen), {} if before is None else dict(before.unseen))
        for reason, tokens in unseen.items():
            self.unseen[reason] += tokens
        self.taps = _added(self.taps, report.tap, TapLedgerCounts() if before is None else before.tap)
        grown = {
            stack: max(0, report.expected(stack) - (0 if before is None else before.expected(stack))) for stack in Stack
        }
        for where, tap in self._taps.items():
            tap.expected += grown[where.stack]
            tap.missing += engine.share(where).expect(grown[where.stack])
        self.sample()

    def saw(self, engine: EngineId, reads: Iterable[TapRead]) -> None:
        """Book rows that arrived from a registered engine."""
        known = self._engines[engine]
        known.active_s, known.lost_s = self._clock.monotonic_s(), None
        for one in reads:
            tap = self._taps.get(one.tap_point)
            if tap is not None:
                known.share(one.tap_point).seen += one.rows
                tap.seen += one.rows
                tap.control_rows += one.control_rows
                tap.control_in_range += one.control_in_range

    # judgement

    def sample(self) -> None:
        """Remember the counts of this moment, at most five times a second, and judge every tap point by its window."""
        now = self._clock.monotonic_s()
        self._forget(now)
        self._check_complete()
        dropped = self.unseen[UnseenReason.TAP_DROPPED]
        for tap in self._taps.values():
            if now - tap.samples[-1].at_s < _SAMPLE_S:
                continue
            tap.samples.append(_Sample(now, tap.expected, tap.missing, dropped, tap.control_rows, tap.control_in_range))
            while len(tap.samples) > 1 and tap.samples[1].at_s <= now - self._config.window_s:
                tap.samples.popleft()
            self._judge(tap)

    def _judge(self, tap: _Tap) -> None:
        newest, base = tap.samples[-1], tap.samples[0]
        expected = newest.expected - base.expected
        if expected > 0:
            lost = newest.missing - base.missing
            if lost > (1 - self._config.min_seen) * expected:
                tap.parted = "tap_dropped" if newest.dropped > base.dropped else "not_seen"
            else:
                tap.parted = ""

    def _control(self, tap: _Tap) -> str:
        """Why the positive control cannot be trusted; empty if it reads right, or has too little to read."""
        if not tap.has_control:
            return "no_control"
        base = tap.samples[0]
        rows = tap.control_rows - base.control_rows
        right = tap.control_in_range - base.control_in_range
        if rows < _MIN_CONTROL_ROWS:  # a quiet window: judge by all rows since the start
            rows, right = tap.control_rows, tap.control_in_range
        wrong = rows >= _MIN_CONTROL_ROWS and right < self._config.min_control * rows
        return "control_out_of_range" if wrong else ""

    def _engines_reason(self) -> str:
        """Why no tap point can be trusted whatever it counts: an engine is lost, proves nothing, or is not there at all."""
        now = self._clock.monotonic_s()
        for engine in self._engines.values():
            if reason := engine.trouble(now, self._config.report_s):
                return reason
        return "no_engine" if now - self._complete_s > self._config.engine_grace_s else ""

    def snapshot(self) -> tuple[tuple[CoverageSnapshot, ...], bool]:
        """Every tap point, and whether anything at all is blind."""
        self.sample()
        engines = self._engines_reason()
        taps = []
        for where, tap in self._taps.items():
            reason = engines or tap.parted or self._control(tap)
            taps.append(
                CoverageSnapshot(
                    where, tap.expected, tap.seen, bool(reason), reason, tap.control_rows, tap.control_in_range
                )
            )
        untapped = not self._taps and any(engine.streams for engine in self._engines.values())
        return tuple(taps), bool(engines) or untapped or any(tap.blind for tap in taps)

    def _forget(self, now: float) -> None:
        gone = [
            name
            for name, engine in self._engines.items()
            if not engine.streams and now - engine.last_sign_s > self._config.forget_s
        ]
        for name in gone:
            del self._engines[name]


def _grown(now: Mapping[UnseenReason, int], before: Mapping[UnseenReason, int]) -> dict[UnseenReason, int]:
    return {reason: max(0, count - before.get(reason, 0)) for reason, count in now.items()}


def _added(total: TapLedgerCounts, now: TapLedgerCounts, before: TapLedgerCounts) -> TapLedgerCounts:
    return TapLedgerCounts(
        *(max(0, t + n - b) for t, n, b in zip(astuple(total), astuple(now), astuple(before), strict=True))
    )
