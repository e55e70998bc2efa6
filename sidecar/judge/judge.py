"""Readings to verdicts: update the running scores, calibrate, compare. What can wait until after the reply is accounted apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from itertools import islice

import numpy as np

from probes.manifest import AggregationKind
from sidecar.clock import Clock
from sidecar.config import Limits
from sidecar.judge.aggregate import Aggregates
from sidecar.judge.buckets import EXEMPLAR
from sidecar.judge.calibration import Calibrations
from sidecar.judge.kinds import CountArray, DoubleArray, Grouped
from sidecar.judge.policy import Policy
from sidecar.judge.readiness import Readiness
from sidecar.judge.requests import Key, RequestTable, Tracked
from sidecar.judge.tally import SCORE_EDGES, TallyBank
from sidecar.judge.thresholds import Thresholds
from sidecar.judge.verdict import FlaggedSignal, Verdict
from sidecar.reading.plan import Plan
from sidecar.reading.read import Readings
from sidecar.snapshot import EndedRequest, Exemplar, SignalScore
from sidecar.types import Action, BoolArray, EngineId, Evidence, FloatArray, RequestId, StepBatch, TraceParent

_ENDED_AT_ONCE = 32
_EXEMPLARS_EVERY_S = 1.0  # finer than any scrape; a step's cost must not grow with the number of traces


class Judge:
    """Running scores and their statistics for one plan. Owned by the pipeline's thread."""

    def __init__(
        self, plan: Plan, policy: Policy, limits: Limits, clock: Clock, ended: Callable[[EndedRequest], None]
    ) -> None:
        signals = plan.signals
        self._plan = plan
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._ended = ended
        self.requests = RequestTable(limits.requests)
        self.evicted = 0
        self.weight = 1  # how many requests a new one stands for, while the taps are asked for fewer than usual
        self._aggregates = Aggregates(signals, limits.requests)
        self._calibrations = Calibrations(signals)
        self._thresholds = Thresholds(signals)
        self._may_flag = np.array([signal.may_flag for signal in signals], dtype=np.bool_)
        self._readiness = Readiness(signals)
        self._heads = [  # signals that are a sum of several columns, and where these are
            (i, slice(int(first), int(first) + signals[i].columns))
            for i, first in enumerate(() if plan.firsts is None else plan.firsts)
            if signals[i].aggregation is AggregationKind.MULTIMAX
        ]
        self.token_scores = TallyBank(SCORE_EDGES, len(signals))
        self.request_scores = TallyBank(SCORE_EDGES, len(signals))
        self.detections = np.zeros(len(signals), dtype=np.int64)
        self.detections_estimated = np.zeros(len(signals), dtype=np.int64)
        self.detection_exemplars = np.zeros(len(signals), dtype=EXEMPLAR)
        self._shown_s = -_EXEMPLARS_EVERY_S
        self._over: dict[Key, str] = {}  # requests that are to be ended, and why

    def succeed(self, before: Judge) -> None:
        """Go on where the judge of the plan before stopped.

        Requests go on, counts go on by signal name, running scores go on where the signal is unchanged.
        """
        self.requests, self.evicted, self._over = before.requests, before.evicted, before._over
        then = {signal.name: i for i, signal in enumerate(before._plan.signals)}
        named = [(then[signal.name], i) for i, signal in enumerate(self._plan.signals) if signal.name in then]
        for old, new in named:
            self.token_scores.take(new, before.token_scores, old)
            self.request_scores.take(new, before.request_scores, old)
            self.detections[new] = before.detections[old]
            self.detections_estimated[new] = before.detections_estimated[old]
            self.detection_exemplars[new] = before.detection_exemplars[old]
        same = {old: new for old, new in named if before._plan.signals[old].digest == self._plan.signals[new].digest}
        self._aggregates.move(before._aggregates, list(same.items()), self.requests.slots())
        self.requests.renumber(same)

    # the hot half: before the reply

    def judge(self, readings: Readings, batch: StepBatch) -> tuple[Verdict, ...]:
        """Update every request of the step and say which are over a threshold, or all of them if somebody waits."""
        tracked = self._track(batch)
        slots = np.array([request.slot for request in tracked], dtype=np.intp)
        self._aggregates.update(Grouped(readings.values, readings.valid, batch.segments.starts, slots))
        scores, counts = self._aggregates.state_of(slots)
        lines = self._calibrations.lines(scores)  # [G, S]
        ready = self._readiness.of(batch, counts)
        ready[[group for group, request in enumerate(tracked) if request.adapter]] = False  # shown, and never acts
        near = (lines >= self._thresholds.near(counts)) & self._may_flag & ready
        told: Iterable[int] = (
            range(len(tracked)) if batch.verdict_within_s else np.flatnonzero(near.any(axis=1)).tolist()
        )
        verdicts = [self._verdict(tracked[group], near[group], lines[group], counts[group]) for group in told]
        if not batch.verdict_within_s:
            return tuple(verdict for verdict in verdicts if verdict.signals)
        nothing = np.zeros_like(readings.late)
        lates = [nothing if request.adapter else readings.late for request in tracked]
        return tuple(
            replace(verdict, action=self._policy.unless_late(verdict.action, late), **self._policy.told(read, late))
            for verdict, read, late in zip(verdicts, ready, lates, strict=True)
        )

    def _track(self, batch: StepBatch) -> list[Tracked]:
        """The requests of the step, in the order of its segments; the least recently seen make room for new ones."""
        now_s, table, segments = self._clock.monotonic_s(), self.requests, batch.segments
        tracked = []
        for index, (request_id, rows) in enumerate(zip(segments.request_ids, segments.rows.tolist(), strict=True)):
            key = (batch.engine_id, request_id)
            if key in self._over:  # an id used again is another request
                self._end(key, self._over.pop(key))
            request = table.find(key)
            if request is None:
                if table.full:
                    self._make_room()
                request = table.add(key, segments, index, self._clock.unix_ns(), self.weight)
            request.seen_s = now_s
            request.tokens_seen += rows
            tracked.append(request)
        for index, tokens in segments.unseen_tokens.items():
            tracked[index].tokens_unseen += tokens
        for index in segments.media:
            for medium, tokens in segments.media_rows(index).items():
                tracked[index].media[medium] = tracked[index].media.get(medium, 0) + tokens
        return tracked

    def _make_room(self) -> None:
        """The least recently seen request goes. It is given up only if it was not over anyway."""
        oldest = self.requests.oldest
        self.evicted += oldest not in self._over
        self._end(oldest, self._over.pop(oldest, "evicted"))

    def _verdict(self, request: Tracked, near: BoolArray, lines: DoubleArray, counts: CountArray) -> Verdict:
        close = np.flatnonzero(near)
        if not len(close):
            return Verdict(request.key[1], Action.ALLOW)
        scores = self._calibrations.probabilities(lines[close], close)
        thresholds = self._thresholds.of(counts)[close]
        over = ~(scores <= thresholds)
        flagged = []
        told = (close[over].tolist(), scores[over].tolist(), thresholds[over].tolist())
        for index, score, threshold in zip(*told, strict=True):
            flagged.append(FlaggedSignal(self._plan.signals[index].name, score, threshold))
            if index not in request.flagged:
                request.flagged.add(index)
                if not request.canary:
                    self.detections[index] += 1
                    self.detections_estimated[index] += request.weight
                    exemplar = self._exemplar(score, request.traceparent)
                    if exemplar is not None:
                        self.detection_exemplars[index] = astuple(exemplar)
        action = self._policy.action(close[over]) if flagged else Action.ALLOW
        return Verdict(request.key[1], action, tuple(flagged))

    # the other half: after the reply

    def account(self, readings: Readings, batch: StepBatch, steps: int = 1) -> None:
        """Count the step's readings into the histograms; it stands for ``steps``. Canaries are not traffic and are left out."""
        segments, valid = batch.segments, readings.valid
        if any(segments.canaries):
            valid = valid & ~np.repeat(np.array(segments.canaries), segments.rows)[:, None]
        scores = self._calibrations.of_tokens(self._tokens(readings.values))  # [T, S]
        weight = readings.weight * steps
        same = int(weight[0]) if len(weight) and (weight == weight[0]).all() else 0
        if same and valid.all():
            self.token_scores.add_rows(scores, same)
        else:
            rows, signals = np.nonzero(valid)
            self.token_scores.add(signals, scores[rows, signals], same or weight[signals])
        if segments.traceparents and self._clock.monotonic_s() - self._shown_s >= _EXEMPLARS_EVERY_S:
            self._shown_s = self._clock.monotonic_s()
            self._show_highest(np.where(valid, scores, -1.0), batch)

    def _tokens(self, values: FloatArray) -> FloatArray:
        """[T, S], what each row says by itself: the only reading, the value that is attended to, or the sum of all heads."""
        firsts = self._plan.firsts
        if firsts is None:
            return values
        alone = values.take(firsts, axis=1)
        for signal, columns in self._heads:
            alone[:, signal] = values[:, columns].sum(axis=1)
        return alone

    def _show_highest(self, scores: DoubleArray, batch: StepBatch) -> None:
        """The step's highest score of each signal becomes an exemplar, if its request has a trace."""
        rows = np.argmax(scores, axis=0)
        owners = np.searchsorted(batch.segments.starts, rows, side="right") - 1
        for signal, (row, owner) in enumerate(zip(rows.tolist(), owners.tolist(), strict=True)):
            score = float(scores[row, signal])
            request = self.requests.find((batch.engine_id, batch.segments.request_ids[owner]))
            exemplar = None if request is None or score < 0 else self._exemplar(score, request.traceparent)
            if exemplar is not None:
                self.token_scores.show(signal, exemplar)

    def _exemplar(self, value: float, parent: TraceParent | None) -> Exemplar | None:
        if parent is None:
            return None
        return Exemplar(value, parent.trace_id, parent.span_id, self._clock.unix_ns() / 1e9)

    # requests that end

    def finish(self, engine: EngineId, requests: tuple[RequestId, ...]) -> None:
        """These requests are over. They are ended by ``sweep``, or at once if one of the same name comes."""
        for request_id in requests:
            if (engine, request_id) in self.requests:  # so no more can be over than are tracked
                self._over.setdefault((engine, request_id), "finished")

    def retire_idle(self) -> None:
        """Requests that were idle for too long are over."""
        for key in self.requests.idle_since(self._clock.monotonic_s() - self._limits.request_idle_s):
            self._over.setdefault(key, "idle")

    def sweep(self) -> None:
        """End some of the requests that are over: a portion, so that no batch waits for a thousand of them."""
        for key in list(islice(self._over, _ENDED_AT_ONCE)):
            self._end(key, self._over.pop(key))

    def end_all(self, why: str) -> None:
        for key in self.requests.open():
            self._end(key, self._over.pop(key, why))
        self._over.clear()

    def _end(self, key: Key, why: str) -> None:
        request = self.requests.end(key)
        if request is not None:
            self._finish(request, why)

    def _finish(self, request: Tracked, why: str) -> None:
        slot = np.array([request.slot], dtype=np.intp)
        (raw,), (counts,) = self._aggregates.state_of(slot)
        scores = self._calibrations.probabilities(self._calibrations.lines(raw), np.arange(len(raw)))
        self._aggregates.reset(request.slot)
        read, thresholds = np.flatnonzero(counts), self._thresholds.of(counts)
        if not request.canary:
            self.request_scores.add(read, scores[read], request.weight)
        final = []
        for index in read.tolist():
            signal, score = self._plan.signals[index], float(scores[index])
            flagged = index in request.flagged
            final.append(
                SignalScore(
                    signal.name,
                    signal.version,
                    Evidence.STALE if request.adapter else signal.evidence,
                    score,
                    float(thresholds[index]),
                    flagged,
                    int(counts[index]),
                )
            )
            exemplar = self._exemplar(score, request.traceparent)
            if exemplar is not None and not request.canary:
                self.request_scores.show(index, exemplar)
        self._ended(
            EndedRequest(
                request.key[1],
                request.key[0],
                request.traceparent,
                request.started_ns,
                self._clock.unix_ns(),
                request.tokens_seen,
                request.tokens_unseen,
                tuple(final),
                why,
                request.route,
                request.canary,
                request.adapter,
                tuple(sorted(request.media.items())),
            )
        )
