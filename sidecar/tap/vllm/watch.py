"""One model's steps, seen from its runner: whose rows they are, from the scheduler; and their states, from the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch

from sidecar.tap.client import TapClient
from sidecar.tap.cost import Cost
from sidecar.tap.recorder import AnySpan, Recorder
from sidecar.tap.tensors.keeper import Keeper
from sidecar.tap.vllm.requests import Requests
from sidecar.tap.vllm.shelf import Shelf
from sidecar.types import TapPoint, UnseenReason

log = logging.getLogger("stethoscope.tap")

COST_VARIABLE = "STETHOSCOPE_TAP_COST"  # 1: measured and told
_TOLD_STEPS = 100
States: TypeAlias = Mapping[TapPoint, torch.Tensor]
Tokens: TypeAlias = Mapping[str, list[int]]  # by request
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows:
    """Request i owns the rows ``starts[i] .. starts[i + 1] - 1`` of a step, from position ``firsts[i]`` on.

    drafts: of how many of them, the last ones, a drafter guessed the tokens.
    """

    ids: list[str]
    starts: list[int]  # one more than ids
    firsts: list[int]
    drafts: Mapping[str, int]

    @property
    def count(self) -> int:
        return self.starts[len(self.ids)]


class StepWatch:
    """Follows requests and keeps states. Owned by the worker's thread; nothing that goes wrong here reaches the engine.

    So it is handed functions, and calls them itself: what an engine has may be another thing than was thought.

    guesses_told: what became of the drafts of a step is known when its tokens are sampled. Else drafts are left out; and while the
    scheduler runs ahead of the sampler (``ahead``) so is all that follows them: its positions are only guessed.
    """

    def __init__(self, client: TapClient, shelf: Shelf, *, guesses_told: bool, ahead: bool) -> None:
        self.client = client
        self.shelf = shelf
        self.faults = shelf.faults
        self.points: tuple[TapPoint, ...] = ()  # that are tapped
        self.auxiliary: tuple[TapPoint, ...] = ()  # those of them that the model hands out, in order
        self.drafts: Mapping[str, int] = {}  # of the step that the scheduler announced: how many, by request
        self.recorder = Recorder(client)
        self._keeper = Keeper(self.recorder, self.faults)
        self._requests = Requests(self.recorder)
        self._guesses_told, self._ahead = guesses_told, ahead
        self._announced = 0  # rows of the step that comes
        self._tokens = 0  # of the step that began, until they are accounted for
        self._rows: Rows | None = None  # whose they are
        self._held: States | None = None  # until its tokens are sampled
        self.follow: Callable[[Any], None] = self._safely("schedule", self._follow)
        self.before: Callable[[Callable[[], Rows]], None] = self._safely("before_forward", self._before)
        self.after: Callable[[Callable[[], States]], None] = self._safely("after_forward", self._after)
        self.sampled: Callable[[Callable[[], Tokens]], None] = self._safely("after_sampling", self._sampled)
        self._tell_at = _TOLD_STEPS
        self.cost = Cost() if os.environ.get(COST_VARIABLE) == "1" else None
        if self.cost is not None:
            self._measure(self.cost)

    def _follow(self, scheduled: Any) -> None:
        """The scheduler's word on a step, also on one without rows."""
        self._announced, self.drafts = 0, {}
        self._give_up()  # a step that never ended
        self._announced = int(scheduled.total_num_scheduled_tokens)
        drafts = scheduled.scheduled_spec_decode_tokens
        self.drafts = {name: len(tokens) for name, tokens in drafts.items() if tokens}
        self._requests.follow(scheduled)

    def _before(self, rows: Callable[[], Rows]) -> None:
        """The forward pass of these rows begins."""
        self._tokens = self._announced
        self._rows = rows()
        self._tokens = self._rows.count
        self.shelf.clear(self._tokens)

    def _after(self, outputs: Callable[[], States]) -> None:
        """It ended; ``outputs`` are the states that it returned. Drafts wait for ``sampled``, if it comes."""
        rows = self._rows
        if rows is None:
            return
        states = {**outputs(), **self.shelf.read(rows.count)}
        if rows.drafts and self._guesses_told:
            self._held = states
        else:
            self._record(rows, states, {})

    def _sampled(self, tokens: Callable[[], Tokens]) -> None:
        """What was sampled for each request: the drafts that were right, and one token more."""
        rows, states = self._rows, self._held
        if rows is not None and states is not None:
            self._record(rows, states, tokens())

    def _record(self, rows: Rows, states: States, tokens: Tokens) -> None:
        asked = self.client.settings.tap_points
        self.recorder.begin(self._spans(rows, tokens), capture=bool(asked))
        for point in asked:
            if point in states:
                self._keeper.keep(point, states[point])
        self.recorder.end()
        self._forget()

    def _forget(self) -> None:
        self._tokens, self._rows, self._held = 0, None, None

    def _give_up(self) -> None:
        """What the step computed is counted, once, as not captured."""
        tokens = self._tokens
        self._forget()
        if tokens:
            self.recorder.give_up(tokens)

    def _safely(self, where: str, work: Callable[[T], None]) -> Callable[[T], None]:
        def safe(given: T) -> None:
            try:
                work(given)
            except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
                self.faults.note(where, error)
                try:
                    self._give_up()
                except Exception as another:  # noqa: BLE001 - the same
                    self.faults.note("give_up", another)

        return safe

    def _measure(self, cost: Cost) -> None:
        """All of our work between the engine's own, wherever it is done."""
        self.follow, self.sampled = cost.beside(self.follow), cost.beside(self.sampled)
        self.before, after = cost.before(self.before), cost.after(self.after)

        def told(outputs: Callable[[], States]) -> None:
            """Say every hundred steps what they cost the engine's thread: nobody else can read its clock."""
            after(outputs)
            spent = cost.read()
            if spent.steps >= self._tell_at:
                self._tell_at = spent.steps + _TOLD_STEPS
                log.info(
                    "tap_cost steps=%d tap_cpu_ns=%d forward_cpu_ns=%d",
                    spent.steps,
                    spent.tap_cpu_ns,
                    spent.forward_cpu_ns,
                )

        self.after = told

    def _spans(self, rows: Rows, tokens: Tokens) -> Iterator[AnySpan]:
        for place, name in enumerate(rows.ids):
            start, first = rows.starts[place], rows.firsts[place]
            request, length = self._requests[name], rows.starts[place + 1] - start
            drafts = rows.drafts.get(name, 0)
            if drafts:
                length -= drafts
                length += self._requests.limits(name).kept(first + length, tokens.get(name, []))
            yield request, start, first, length
            if drafts and not self._guesses_told:
                request.gap = UnseenReason.UNSUPPORTED  # those that were right show as positions that are passed over
                request.lost = self._ahead
