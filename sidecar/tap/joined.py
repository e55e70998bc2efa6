"""Consecutive steps of an engine as one: a batch of them says what a batch of each would have said.

Rows of a request that goes on from step to step become one segment. What differs between two steps and can be said once only
keeps them apart: the plan, the tensors' layout, and of a request its phase, its facts and its place in line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from sidecar.tap.batch import MESSAGE_ROWS, MESSAGE_SEGMENTS
from sidecar.tap.step import CapturedStep, Sample, States, StepSegment
from sidecar.types import ElementType, IndexArray, TapPoint, UnseenReason

# What fits into the smallest ring that a tap takes, and into the pages that are mapped in advance. A step of 64 requests x 4
# tap points x 4096 bf16 is as large by itself: what is saved by sending several at once is long paid for then.
JOINED_BYTES = 2 << 20
_Layout: TypeAlias = list[tuple[TapPoint, type[States], ElementType, int]]


@dataclass(frozen=True, slots=True)
class JoinedStates:
    """Some rows of several steps' states, in another order: row i is row ``order[i]`` of the parts, one behind the other."""

    parts: tuple[States, ...]  # of one type and width
    order: IndexArray
    sample: Sample | None = None

    @classmethod
    def of(cls, parts: Sequence[States], order: IndexArray) -> JoinedStates:
        """Every row of the parts; with the samples that they have."""
        return cls(tuple(parts), order, joined_sample(parts, order))

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.order), self.parts[0].shape[1])

    @property
    def dtype(self) -> ElementType:
        return self.parts[0].dtype

    @property
    def projected(self) -> bool:
        return self.parts[0].projected

    @property
    def held_bytes(self) -> int:
        return sum(part.held_bytes for part in self.parts)

    def part(self, start: int, stop: int) -> JoinedStates:
        sample = None if self.sample is None else self.sample.part(start, stop)
        return replace(self, order=self.order[start:stop], sample=sample)

    def joined(self, others: Sequence[States], order: IndexArray) -> JoinedStates:
        return JoinedStates.of([self, *others], order)

    def write(self, into: memoryview) -> None:
        """Every part by one call, whatever its rows' new places are, and then all rows by one more."""
        storage, columns = self.dtype.storage, self.shape[1]
        rows = np.empty((sum(part.shape[0] for part in self.parts), columns), storage)
        bytes_, stop = rows.data.cast("B"), 0
        for part in self.parts:
            start, stop = stop, stop + part.shape[0] * columns * storage.itemsize
            part.write(bytes_[start:stop])
        # "clip" changes no index here; with "raise" numpy would write to a buffer first.
        np.take(rows, self.order, axis=0, out=np.frombuffer(into, storage).reshape(self.shape), mode="clip")


def joined_sample(parts: Sequence[States], order: IndexArray) -> Sample | None:
    """The parts' samples as one, by the rows' new places."""
    samples: list[States] = []
    rows: list[int] = []
    start = 0
    for part in parts:
        if part.sample is not None:
            samples.append(part.sample.states)
            rows += [start + row for row in part.sample.rows]
        start += part.shape[0]
    if not samples:
        return None
    places = np.empty(len(order), np.intp)
    places[order] = np.arange(len(order))
    found = places[rows]
    by_place = np.argsort(found)
    return Sample(tuple(found[by_place].tolist()), JoinedStates(tuple(samples), by_place))


class _Block:
    """Steps of the same requests in the same order: what most steps are, and looked at by column, without a loop in Python."""

    __slots__ = ("infos", "medias", "phases", "positions", "prompts", "rows", "segments", "start", "wire_ids")

    def __init__(self, step: CapturedStep, start: int) -> None:
        self.segments = step.segments
        self.rows = step.tokens
        self.start = start  # where its rows begin among all
        self.infos, self.wire_ids, first, self.phases, self.prompts, _, self.medias = _columns(step)
        self.positions = [first]  # of every step, by segment

    def add(self, step: CapturedStep) -> bool:
        """Take a step of one row for each of the requests, of which nothing new is said."""
        infos, wire_ids, positions, phases, prompts, unseen, medias = _columns(step)
        same = (
            wire_ids == self.wire_ids
            and infos == self.infos
            and (phases, prompts, medias) == (self.phases, self.prompts, self.medias)
            and step.tokens == self.rows == len(positions)
            and not any(unseen)
            and all(new[0] > old[0] for old, new in zip(self.positions[-1], positions, strict=True))
        )
        if same:
            self.positions.append(positions)
        return same


def _columns(step: CapturedStep) -> tuple[Any, ...]:
    """The fields of ``StepSegment``, each for all segments."""
    return tuple(zip(*step.segments, strict=True))


class _Stretch:
    """The rows of one request in all of the steps."""

    __slots__ = ("first", "positions", "rows", "unseen")

    def __init__(self, first: StepSegment) -> None:
        self.first = first
        self.positions: list[int] = []
        self.rows: list[int] = []  # in the steps' rows, one step behind the other
        self.unseen: dict[UnseenReason, int] | None = None

    def goes_on(self, segment: StepSegment) -> bool:
        """Whether one segment can say what both say."""
        first = self.first
        return (
            segment.positions[0] > self.positions[-1]
            and segment.phase is first.phase
            and segment.prompt_tokens == first.prompt_tokens
            and (segment.info is first.info or segment.info == first.info)
            and segment.media == first.media
        )

    def add(self, segment: StepSegment, rows: Iterable[int], positions: Iterable[int]) -> None:
        self.positions += positions
        self.rows += rows
        if segment.unseen:
            unseen = self.unseen = self.unseen or {}
            for reason, tokens in segment.unseen:
                unseen[reason] = unseen.get(reason, 0) + tokens

    @property
    def segment(self) -> StepSegment:
        first, unseen = self.first, tuple(self.unseen.items()) if self.unseen else ()
        return StepSegment(
            first.info, first.wire_id, self.positions, first.phase, first.prompt_tokens, unseen, first.media
        )


class Joined:
    """Steps that go as one, in the making; the first is always taken."""

    def __init__(self, first: CapturedStep) -> None:
        self.steps = [first]
        self._layout: _Layout = []
        self._row_bytes = 0
        self._block: _Block | None = None  # that may go on; None until there is a second step
        self._stretches: dict[str, _Stretch] = {}  # of the blocks before
        self._over: set[str] = set()
        self._rows = self._bytes = 0

    def add(self, step: CapturedStep) -> bool:
        """Take the step that was captured next. False if it must go by itself, and with it what comes behind it."""
        block = self._block
        if block is None:
            block = self._open(self.steps[0])
        size = self._size(step)
        alike = step.plan_generation == self.steps[0].plan_generation and _layout(step) == self._layout
        if not alike or self._bytes + size > JOINED_BYTES or self._rows + step.tokens > MESSAGE_ROWS:
            return False
        if not self._over.isdisjoint(block.wire_ids) or not block.add(step):
            self._close(block)
            if not self._goes_on(step.segments):
                return False
            self._block = _Block(step, self._rows)
        self.steps.append(step)
        self._rows += step.tokens
        self._bytes += size
        return True

    def end(self, requests: Iterable[str]) -> None:
        """These requests ended behind the steps taken so far, and will be told to have ended behind all.

        So another of the same name is kept apart.
        """
        self._over.update(requests)

    def step(self) -> CapturedStep:
        """All of them as one, which says of itself what the last one does."""
        first, *others = self.steps
        if not others or self._block is None:
            return first
        self._close(self._block)
        stretches = self._stretches.values()
        order = np.array([row for one in stretches for row in one.rows], np.intp)
        tensors = tuple(
            (point, states.joined([other.tensors[place][1] for other in others], order))
            for place, (point, states) in enumerate(first.tensors)
        )
        segments = tuple([one.segment for one in stretches])
        return replace(others[-1], segments=segments, tensors=tensors, tokens=self._rows)

    def _open(self, first: CapturedStep) -> _Block:
        """A step that stays alone is not looked into."""
        self._layout = _layout(first)
        self._row_bytes = sum(columns * dtype.storage.itemsize for _, _, dtype, columns in self._layout)
        block = self._block = _Block(first, 0)
        self._rows, self._bytes = first.tokens, self._size(first)
        return block

    def _size(self, step: CapturedStep) -> int:
        return step.nbytes if step.plan_generation else step.tokens * self._row_bytes  # without a plan no samples

    def _close(self, block: _Block) -> None:
        """Enter its rows. Once for each block: what it was closed with is forgotten."""
        steps, start = len(block.positions), block.start
        for place, segment in enumerate(block.segments):
            stretch = self._stretches.get(segment.wire_id)
            if stretch is None:
                stretch = self._stretches[segment.wire_id] = _Stretch(segment)
            if steps == 1:
                stretch.add(segment, range(start, start + len(segment.positions)), segment.positions)
                start += len(segment.positions)
            else:  # a row of each segment in every step
                rows = range(start + place, start + steps * block.rows, block.rows)
                stretch.add(segment, rows, [positions[place][0] for positions in block.positions])
        block.segments, block.wire_ids = (), ()

    def _goes_on(self, segments: Sequence[StepSegment]) -> bool:
        known, new = self._stretches, 0
        for segment in segments:
            found = known.get(segment.wire_id)
            if segment.wire_id in self._over or (found is not None and not found.goes_on(segment)):
                return False
            new += found is None
        return len(known) + new <= MESSAGE_SEGMENTS


def _layout(step: CapturedStep) -> _Layout:
    return [(point, type(states), states.dtype, states.shape[1]) for point, states in step.tensors]
