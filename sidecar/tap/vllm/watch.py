"""One model's steps, seen from its runner: whose rows they are, from the scheduler; and their states, from the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sidecar.tap.client import TapClient
from sidecar.tap.cost import Cost
from sidecar.tap.faults import Faults
from sidecar.tap.recorder import AnySpan, Recorder
from sidecar.tap.tensors.keeper import Keeper
from sidecar.tap.vllm.requests import Requests
from sidecar.tap.vllm.shelf import Shelf
from sidecar.types import TapPoint, UnseenReason

log = logging.getLogger("stethoscope.tap")

COST_VARIABLE = "STETHOSCOPE_TAP_COST"  # 1: measured and told
_TOLD_STEPS = 100
States = Mapping[TapPoint, torch.Tensor]


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

    guesses_told: what became of the drafts of a step is known when its tokens are sampled. Else drafts are left out; and while the
    scheduler runs ahead of the sampler (``ahead``) so is all that follows them: its positions are only guessed.
    """

    def __init__(self, client: TapClient, shelf: Shelf, *, guesses_told: bool, ahead: bool) -> None:
        self.client = client
        self.shelf = shelf
        self.faults = Faults()
        self._cost = Cost() if os.environ.get(COST_VARIABLE) == "1" else None
        self.points: tuple[TapPoint, ...] = ()  # that are tapped
        self.auxiliary: tuple[TapPoint, ...] = ()  # those of them that the model hands out, in order
        self.recorder = Recorder(client)
        self._keeper = Keeper(self.recorder, self.faults)
        self._requests = Requests(self.recorder)
        self._guesses_told, self._ahead = guesses_told, ahead
        self._held: tuple[Rows, States] | None = None
        self.before = self._before if self._cost is None else self._cost.before(self._before)
        self.after = self._after if self._cost is None else self._told(self._cost, self._cost.after(self._after))

    def follow(self, scheduled: Any) -> None:
        """The scheduler's word on a step, also on one without rows."""
        try:
            self._requests.follow(scheduled)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("schedule", error)

    def _before(self, rows: int) -> None:
        """The forward pass of so many rows begins."""
        try:
            self.shelf.clear(rows)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("before_forward", error)

    def _after(self, rows: Rows, outputs: States) -> None:
        """It ended; ``outputs`` are the states that it returned. Drafts wait for ``sampled``, if it comes."""
        try:
            states = {**outputs, **self.shelf.read(rows.count)}
            if rows.drafts and self._guesses_told:
                self._held = (rows, states)
            else:
                self._record(rows, states, {})
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("after_forward", error)
            self.recorder.give_up(rows.count)

    def sampled(self, tokens: Mapping[str, list[int]]) -> None:
        """What was sampled for each request: the drafts that were right, and one token more."""
        held, self._held = self._held, None
        if held is None:
            return
        rows, states = held
        try:
            self._record(rows, states, tokens)
        except Exception as error:  # noqa: BLE001 - counted, and nothing of ours may reach the engine
            self.faults.note("after_sampling", error)
            self.recorder.give_up(rows.count)

    def _record(self, rows: Rows, states: States, tokens: Mapping[str, list[int]]) -> None:
        asked = self.client.settings.tap_points
        self.recorder.begin(self._spans(rows, tokens), capture=bool(asked))
        for point in asked:
            if point in states:
                self._keeper.keep(point, states[point])
        self.recorder.end()

    @staticmethod
    def _told(cost: Cost, after: Callable[[Rows, States], None]) -> Callable[[Rows, States], None]:
        """Say every hundred steps what they cost the engine's thread: nobody else can read its clock."""

        def told(rows: Rows, outputs: States) -> None:
            after(rows, outputs)
            spent = cost.read()
            if spent.steps % _TOLD_STEPS == 0:
                log.info(
                    "tap_cost steps=%d tap_cpu_ns=%d forward_cpu_ns=%d",
                    spent.steps,
                    spent.tap_cpu_ns,
                    spent.forward_cpu_ns,
                )

        return told

    def _spans(self, rows: Rows, tokens: Mapping[str, list[int]]) -> Iterator[AnySpan]:
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
