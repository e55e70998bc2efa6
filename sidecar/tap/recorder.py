"""From the engine's schedule to a captured step: counts every token, and keeps the chosen rows of those tap points that fire.

An engine adapter calls ``begin`` with the rows of a step, its layer hooks call ``keep``, and then ``end``. What was computed
is counted from ``begin`` alone: a hook that never fires leaves its tap point out of the batch and changes no count.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sidecar.tap.client import TapClient
from sidecar.tap.plan import FetchedPlan
from sidecar.tap.sampler import Sampler
from sidecar.tap.step import CapturedStep, Request, RequestInfo, States, StepSegment, wire_id
from sidecar.tap.traffic import StepTally
from sidecar.tap.wire import Settings
from sidecar.types import Mode, Phase, SamplingPolicy, Stack, TapPoint, UnseenReason


class Span(NamedTuple):
    """Rows ``row .. row + length - 1`` of the step belong to ``request``, at positions ``first .. first + length - 1``.

    A plain tuple of the four will do, and is made in a tenth of the time: engines that run hundreds of requests give those.
    """

    request: Request
    row: int
    first: int
    length: int


AnySpan: TypeAlias = tuple[Request, int, int, int]


@dataclass(slots=True)
class OpenStep:
    """The step that a thread is in."""

    number: int
    tally: StepTally
    rows: list[int] = field(default_factory=list)  # chosen rows, increasing
    owners: list[Request] = field(default_factory=list)  # one per segment
    segments: list[StepSegment] = field(default_factory=list)
    tensors: dict[TapPoint, States] = field(default_factory=dict)
    wanted: bool = False  # hooks are to keep rows
    failed: bool = False
    index: object = None  # the adapter's own form of ``rows``, made by the first hook that fires
    at_end: Callable[[], None] | None = None  # the adapter's last work on it, before it is handed over; raises nothing
    plan: FetchedPlan | None = None  # what the rows are multiplied by, the whole step long; None: they go as they are
    sampled_steps: float = 0.0  # with a plan: the share of steps that carry a few rows as they are
    phase: Phase | None = None  # of all of its segments; None: prefill or decode, by the length of each prompt
    rows_computed: int = 0  # chosen or not; of a timestep, else not told

    @property
    def solid(self) -> bool:
        """The rows are one piece."""
        return self.rows[-1] - self.rows[0] + 1 == len(self.rows)


class _Local(threading.local):
    step: OpenStep | None = None


class Recorder:
    """One per tapped model. Several engine threads may be in a step of their own at the same time."""

    def __init__(self, client: TapClient, policy: SamplingPolicy | None = None) -> None:
        self._client = client
        self._own_policy = policy
        self._sampler = Sampler(policy if policy is not None else client.policy)
        self._local = _Local()
        self._numbers = itertools.count(1)
        self._fitting: tuple[FetchedPlan | None, Settings] | None = None  # a plan that has what these settings ask for
        self._closed = False

    @property
    def off(self) -> bool:
        """Nothing is to be done here: it was closed, or this is a child of fork: it has its parent's locks, and no threads."""
        return self._closed or self._client.off

    @property
    def open(self) -> OpenStep | None:
        """The calling thread's step."""
        return self._local.step

    def close(self) -> None:
        """The tap is taken off: no step begins, and one that a thread is in is neither counted nor sent.

        What is left of its hooks would keep half of it, and a count without its rows looks like rows that were lost.
        """
        self._closed = True

    def request(self, info: RequestInfo, prompt_tokens: int, *, chosen: bool | None = None) -> Request:
        """A request seen for the first time. Whether it is captured is decided here, for its whole life.

        chosen: the caller's own wish, which holds against the policy's draw; but not where the policy takes no request at all.
        A canary is captured like one whose caller wishes it.
        """
        sampler = self._current_sampler()
        chosen = True if chosen is None and info.canary else chosen
        if chosen is None or not sampler.policy.request_fraction:
            chosen = sampler.chooses(info.request_id, info.traceparent)
        return Request(info, wire_id(info.request_id), chosen, prompt_tokens)

    def finish(self, requests: Iterable[Request]) -> None:
        """Tell the sidecar which of its requests ended."""
        self._client.finish(request.wire_id for request in requests if request.captured)

    def begin(
        self,
        spans: Iterable[AnySpan],
        *,
        capture: bool = True,
        stack: Stack = Stack.DECODER,
        phase: Phase | None = None,
    ) -> None:
        """A step of one stack starts. ``capture`` is False if no tap point is asked for there: its tokens are left out on purpose.

        phase: that of all rows; by default an encoder's own, or prefill and decode by the prompts' lengths.
        """
        self.abandon()
        if self.off:
            return
        phase = Phase.ENCODER if stack is Stack.ENCODER else phase
        step = OpenStep(next(self._numbers), StepTally(stack=stack), phase=phase)
        self._schedule(step, spans, capture)
        step.wanted = bool(step.rows) and self._client.connected and not self._client.congested
        if step.wanted:
            self._take_plan(step)
        self._local.step = step

    def _schedule(self, step: OpenStep, spans: Iterable[AnySpan], capture: bool) -> None:
        """Every span of the step.

        Requests that go on where they were take no call: nine in ten are passed over, at the default share, and most others
        are in their decode.
        """
        sampler, number = self._current_sampler(), step.number
        plain = capture and sampler.every_token and step.phase is None
        rows, owners, segments = step.rows, step.owners, step.segments
        passed = taken = 0
        for span in spans:
            request, row, first, length = span
            if first != request.next_position or request.last_step < 0:
                self._plan(step, span, sampler, capture)
            elif not request.chosen:
                request.next_position = first + length
                passed += length
            elif plain and length == 1 and request.decodes(number):
                request.last_step, request.next_position = number, first + 1
                taken += 1
                rows.append(row)
                owners.append(request)
                segments.append(
                    StepSegment(request.info, request.wire_id, (first,), Phase.DECODE, request.prompt_tokens)
                )
            else:
                self._plan(step, span, sampler, capture)
        step.tally.tokens += passed + taken
        if passed:
            step.tally.miss(UnseenReason.SAMPLING, passed)

    def _take_plan(self, step: OpenStep) -> None:
        """In projected mode nothing is captured until a plan has come that has every tap point asked for.

        Raw rows were not wanted; and tokens that no tap point has are explained, where a single missing point looks blind.
        A plan of an earlier generation will do until the next is fetched: the sidecar reads those as well.
        """
        settings = self._client.settings
        if settings.mode is not Mode.PROJECTED:
            return
        plan = self._client.plan
        if (plan, settings) != self._fitting:  # compared by identity, as a rule
            step.wanted = plan is not None and plan.points.keys() >= set(settings.tap_points)
            self._fitting = (plan, settings) if step.wanted else None
        step.plan, step.sampled_steps = plan, settings.sampled_steps

    def keep(self, point: TapPoint, states: States) -> None:
        """The chosen rows at one tap point; from here on they belong to the step."""
        step = self._local.step
        if step is not None:
            step.tensors[point] = states  # a block that runs twice in a step counts as it was left

    def fail(self) -> None:
        """A hook failed: the step goes on untapped."""
        step = self._local.step
        if step is not None:
            step.wanted, step.failed = False, True

    def end(self) -> None:
        """The step ended: hand over what was kept, then count it."""
        step = self._local.step
        if step is not None and step.wanted and step.at_end is not None and not self.off:
            step.at_end()
        self._local.step = None
        if step is None or self.off:
            return
        if step.failed:
            step.tally.miss(UnseenReason.UNSUPPORTED, len(step.rows))
        elif step.rows and not self._deliver(step):
            for owner, segment in zip(step.owners, step.segments, strict=True):
                owner.carry(UnseenReason.TAP_DROPPED, len(segment.positions))
        self._client.traffic.add(step.tally)

    def abandon(self) -> None:
        """A step that never ended, because the model raised: it was computed, as far as anybody knows, and not captured."""
        if self._local.step is not None:
            self.fail()
            self.end()

    def give_up(self, tokens: int) -> None:
        """The adapter failed, before it began this step of so many tokens or within it: they are counted, once."""
        if self._local.step is not None:
            self.abandon()
        else:
            self.count(tokens, UnseenReason.UNSUPPORTED)

    def count(self, tokens: int, reason: UnseenReason, stack: Stack = Stack.DECODER) -> None:
        """A step that cannot be captured at all."""
        self.abandon()
        if not self.off:
            self._client.traffic.add(StepTally(tokens, 0, {reason: tokens}, stack))

    def _current_sampler(self) -> Sampler:
        policy = self._own_policy if self._own_policy is not None else self._client.policy
        if policy is not self._sampler.policy:
            self._sampler = Sampler(policy)
        return self._sampler

    def _plan(self, step: OpenStep, span: AnySpan, sampler: Sampler, capture: bool) -> None:
        request, row, first, count = span
        tally = step.tally
        tally.tokens += count
        if request.last_step < 0:
            tally.requests += 1
        passed = first - request.next_position
        if passed > 0:  # as a rule never computed here: the engine had these states already
            self._miss(tally, request, request.gap, passed)
            tally.tokens += passed * (request.gap is not UnseenReason.PREFIX_CACHE)
        again = min(count, max(0, request.next_position - first))  # computed a second time, after a preemption
        if again:
            tally.miss(UnseenReason.SAMPLING, again)
            row, first, count = row + again, first + again, count - again
        repeated = request.last_step == step.number
        request.last_step = step.number
        request.next_position = max(request.next_position, first + count)
        if not count:
            return
        if repeated or request.lost:  # two rows under one id in one step: the sidecar could not tell them apart
            self._miss(tally, request, UnseenReason.UNSUPPORTED, count)
        elif not (capture and request.chosen):
            tally.miss(UnseenReason.SAMPLING, count)
        else:
            self._choose(step, (request, row, first, count), sampler)

    def _choose(self, step: OpenStep, span: AnySpan, sampler: Sampler) -> None:
        request, row, first, count = span
        offsets = sampler.select(first, count, request.prompt_tokens)
        if len(offsets) < count:
            self._miss(step.tally, request, UnseenReason.SAMPLING, count - len(offsets))
        if not offsets:
            return
        if isinstance(offsets, range):
            step.rows.extend(range(row, row + count))
            positions: range | list[int] = range(first, first + count)
        else:
            step.rows.extend(row + offset for offset in offsets)
            positions = [first + offset for offset in offsets]
        phase = step.phase or (Phase.PREFILL if first < request.prompt_tokens else Phase.DECODE)
        unseen: tuple[tuple[UnseenReason, int], ...] = ()
        if request.carried:
            unseen = tuple(request.carried.items())
            request.carried = {}
        media = () if phase is Phase.DECODE else tuple(request.media)
        segment = StepSegment(request.info, request.wire_id, positions, phase, request.prompt_tokens, unseen, media)
        step.owners.append(request)
        step.segments.append(segment)
        request.captured = True

    def _deliver(self, step: OpenStep) -> bool:
        if not step.wanted:
            self._client.forgo(len(step.rows))
            return False
        segments, tensors = tuple(step.segments), tuple(step.tensors.items())
        generation = 0 if step.plan is None else step.plan.generation
        return self._client.submit(
            CapturedStep(time.time_ns(), step.number, segments, tensors, len(step.rows), generation)
        )

    @staticmethod
    def _miss(tally: StepTally, request: Request, reason: UnseenReason, tokens: int) -> None:
        tally.miss(reason, tokens)
        if request.chosen:
            request.carry(reason, tokens)
