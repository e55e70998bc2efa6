"""Steps that go as one say what they would have said one by one: to whoever decodes them, and to whoever reads and judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.manifest import AggregationKind
from probes.registry import load_all
from protos.stethoscope.v1 import ingest_pb2
from sidecar.clock import SystemClock
from sidecar.snapshot import EndedRequest
from sidecar.tap.batch import BatchMessage, inlined, parts
from sidecar.tap.joined import JOINED_BYTES, Joined
from sidecar.tap.limits import LinkLimits
from sidecar.tap.outbox import Finished, Item, Outbox, Report, Waiting, joined
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import CapturedStep, Request, RequestInfo, Sample, StepSegment
from sidecar.tap.tensors.states import TorchStates
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import EngineId, Phase, RequestId, SamplingPolicy, TapLedgerCounts, TapPoint, UnseenReason
from tests.builders import TAP, WIDTH, write_control, write_probe
from tests.hot import Hot
from tests.tap.receiver import decode, segments_of
from tests.tap.samples import NumpyStates, captured, segment, states, step
from tests.tap.test_recorder import Keeper

OTHER = TapPoint(2)
SLOT_BYTES = 1 << 20
ONCE = [
    AggregationKind.MAX_EMA,
    AggregationKind.MAX_ROLLING_MEAN,
]  # which never fall: over the threshold once is for good
KINDS = [AggregationKind.MEAN, AggregationKind.LAST, AggregationKind.EMA, AggregationKind.COHERENCE, *ONCE]


class Schedule:
    """An engine by chance: prompts in chunks, decodes, ends, names that come again, tap points that stay silent."""

    def __init__(self, seed: int, policy: SamplingPolicy) -> None:
        self._rng = np.random.default_rng(seed)
        self.client = Keeper()
        self._recorder = Recorder(self.client, policy)
        self._open: list[Request] = []

    def run(self, turns: int) -> Iterator[Item]:
        """What joins the queue, in order."""
        for _ in range(turns):
            doing = self._rng.random()
            if doing < 0.2 and len(self._open) < 5:
                self._begin()
            elif doing < 0.3 and self._open:
                yield from self._end()
            elif doing < 0.35:
                yield Report(TrafficCounts(), TapLedgerCounts())
            elif self._open:
                yield from self._step()

    def _begin(self) -> None:
        name = f"r{self._rng.integers(8)}"
        if name not in [one.wire_id for one in self._open]:
            info = RequestInfo(name, route=["", "chat"][self._rng.integers(2)])
            self._open.append(self._recorder.request(info, int(self._rng.integers(1, 6))))

    def _end(self) -> Iterator[Item]:
        over = self._open.pop(int(self._rng.integers(len(self._open))))
        self._recorder.finish([over])
        yield from (Finished(tuple(self.client.ended)),) if self.client.ended else ()
        self.client.ended.clear()

    def _step(self) -> Iterator[Item]:
        chosen = [one for one in self._open if self._rng.random() < 0.8]
        if self._rng.random() < 0.1:
            self._rng.shuffle(chosen)
        spans, row = [], 0
        for one in chosen:
            left = one.prompt_tokens - one.next_position
            length = int(self._rng.integers(1, left + 1)) if left > 0 else 1
            skipped = int(self._rng.random() < 0.05)  # as if a prefix cache had had it
            spans.append(Span(one, row, one.next_position + skipped, length))
            row += length
        self._recorder.begin(spans)
        opened = self._recorder.open
        if opened is not None and opened.wanted:
            for point in (TAP, OTHER) if self._rng.random() < 0.95 else (TAP,):
                rows = self._rng.integers(-9, 10, (len(opened.rows), WIDTH)).astype(np.float32)
                self._recorder.keep(point, TorchStates(torch.from_numpy(rows)))
        self._recorder.end()
        yield from (Waiting(one, 0.0, 0) for one in self.client.steps)
        self.client.steps.clear()


def together(items: Sequence[Item], cuts: Sequence[int]) -> Iterator[Item]:
    """What a sender makes of them that looks into its queue after so many each time."""
    outbox, left = Outbox(LinkLimits(queue_batches=10_000)), list(items)
    for cut in [*cuts, len(left)]:
        for item in left[:cut]:
            if isinstance(item, Waiting):
                assert outbox.add(item.step, 0.0)
            else:
                outbox.append(item)
        left = left[cut:]
        while outbox.head is not None:
            if not isinstance(outbox.head, Waiting):
                yield outbox.pop()
                continue
            run = joined(outbox.peek())
            outbox.take(len(run.steps))
            yield Waiting(run.step(), 0.0, 0)


def wire(one: CapturedStep, number: int) -> ingest_pb2.StepBatch:
    """As it comes by the ring."""
    (whole,) = parts(one)
    slot = memoryview(bytearray(SLOT_BYTES))
    length, used = BatchMessage("engine-0", f"b-{number}", whole).write(slot)
    return ingest_pb2.StreamRequest.FromString(inlined(slot[:length], slot[:used])).step_batch


class Heard:
    """A sidecar's hot half, and what it said of every request at its end."""

    def __init__(self, folder: Path) -> None:
        self.ended: list[EndedRequest] = []
        self.hot = Hot(SystemClock(), self.ended.append, load_all(folder, limit=9))
        self.hot.register()
        self.batches = 0
        self.rows: dict[
            tuple[TapPoint, str, int, int], bytes
        ] = {}  # by place, request, its number of that name, position
        self._lives: Counter[str] = Counter()

    def hear(self, items: Iterator[Item] | Sequence[Item]) -> Heard:
        for item in items:
            if isinstance(item, Waiting):
                self._batch(wire(item.step, self.batches))
            elif isinstance(item, Finished):
                self._lives.update(item.request_ids)
                self.hot.pipeline.finished(EngineId("engine-0"), tuple(map(RequestId, item.request_ids)))
        self.hot.pipeline.end_all()
        return self

    def _batch(self, batch: ingest_pb2.StepBatch) -> None:
        self.batches += 1
        keys = [(one.request_id, self._lives[one.request_id], at) for one in segments_of(batch) for at in one.positions]
        for tensor in batch.tensors:
            where = TapPoint(tensor.tap_point.layer)
            made = {(where, *key): row.tobytes() for key, row in zip(keys, decode(tensor), strict=True)}
            assert not self.rows.keys() & made.keys()
            self.rows |= made
        assert self.hot.submit(batch).scored
        self.hot.pipeline.settle()

    @property
    def said(self) -> list[tuple[object, ...]]:
        """Of every request, in the order of their names: the scores but for the last bits of a sum."""
        return sorted(
            (
                one.request_id,
                one.ended_by,
                one.tokens_seen,
                one.tokens_unseen,
                one.route,
                *((score.name, round(score.score, 9), score.readings) for score in one.scores),
            )
            for one in self.ended
        )

    def flagged(self, *names: str) -> Counter[tuple[str, str]]:
        """Requests by id and signal."""
        scores = ((one.request_id, score) for one in self.ended for score in one.scores)
        return Counter((request, score.name) for request, score in scores if score.flagged and score.name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    for number, kind in enumerate(KINDS):
        write_probe(root, kind.value, number, aggregation={"kind": kind.value, "window": 3})
    write_probe(root, "other", 4, OTHER)
    for name, point in (("control", TAP), ("control2", OTHER)):
        write_control(root, name, tap=point)
    return root


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 12), max_size=8),
    st.sampled_from([SamplingPolicy(1.0), SamplingPolicy(0.5), SamplingPolicy(1.0, 3, 2, 1)]),
)
@settings(max_examples=30, deadline=None)
def test_whatever_the_schedule_the_sidecar_hears_the_same_of_every_request(
    folder: Path, seed: int, cuts: list[int], policy: SamplingPolicy
) -> None:
    items = list(Schedule(seed, policy).run(50))
    alone, as_one = Heard(folder).hear(items), Heard(folder).hear(together(items, cuts))
    assert as_one.rows == alone.rows
    assert as_one.said == alone.said
    assert as_one.hot.snapshot().rows == alone.hot.snapshot().rows
    assert as_one.batches <= alone.batches
    assert as_one.flagged(*ONCE) == alone.flagged(*ONCE)
    assert as_one.flagged(*KINDS) <= alone.flagged(*KINDS)  # a running score is looked at once a batch


def test_rows_of_a_request_in_consecutive_steps_become_one_segment_and_its_unseen_tokens_add_up() -> None:
    def decode_step(number: int) -> CapturedStep:
        a = StepSegment(RequestInfo("a"), "a", (number,), Phase.DECODE, 2, ((UnseenReason.SAMPLING, number),))
        return captured((segment("b", range(number, number + 1)), a), states(2, seed=number), number)

    steps = [decode_step(number) for number in (5, 6, 7)]
    run = Joined(steps[0])
    assert [run.add(one) for one in steps[1:]] == [True, True]
    whole = run.step()
    assert [(one.wire_id, one.positions) for one in whole.segments] == [("b", [5, 6, 7]), ("a", [5, 6, 7])]
    assert whole.segments[1].unseen == ((UnseenReason.SAMPLING, 18),)
    assert (whole.step, whole.taken_ns, whole.tokens) == (7, steps[-1].taken_ns, 6)
    sent = decode(wire(whole, 0).tensors[0])
    for place, one in enumerate(steps):
        ((_, values),) = one.tensors
        np.testing.assert_array_equal(sent[[place, 3 + place]], values.rows)  # type: ignore[attr-defined]


def _changed(name: str) -> CapturedStep:
    """What comes behind row 4 of request "r", with one thing changed."""
    info, plain = RequestInfo("r", route="chat"), StepSegment(RequestInfo("r"), "r", (5,), Phase.DECODE, 4)
    changed = {
        "position": plain._replace(positions=(4,)),
        "phase": plain._replace(phase=Phase.PREFILL),
        "prompt": plain._replace(prompt_tokens=5),
        "facts": plain._replace(info=info),
    }
    after = captured((changed.get(name, plain),), states(1))
    if name == "plan":
        return replace(after, plan_generation=2)
    if name == "tap points":
        return replace(after, tensors=())
    if name == "width":
        return captured((plain,), states(1, 16))
    return after


@pytest.mark.parametrize("name", ["position", "phase", "prompt", "facts", "plan", "tap points", "width"])
def test_what_one_batch_cannot_say_of_both_steps_keeps_them_apart(name: str) -> None:
    first = captured((StepSegment(RequestInfo("r"), "r", (4,), Phase.DECODE, 4),), states(1))
    run = Joined(first)
    assert not run.add(_changed(name))
    assert run.step() is first
    assert Joined(first).add(_changed("nothing"))


def test_a_name_that_comes_again_is_kept_apart_by_the_end_that_stands_between() -> None:
    items: list[Item] = [
        Waiting(step("a", 4), 0, 0),
        Finished(("a",)),
        Waiting(step("b", 4), 0, 0),
        Waiting(step("a", 9), 0, 0),
    ]
    sent = list(together(items, []))
    assert [[one.wire_id for one in item.step.segments] if isinstance(item, Waiting) else item for item in sent] == [
        ["a", "b"],
        Finished(("a",)),
        ["a"],
    ]


def test_a_batch_of_several_is_no_larger_than_the_smallest_slot_takes() -> None:
    big = captured((segment("r", range(16), 9999),), states(16, 4096))  # 256 KiB
    run = Joined(big)
    taken = 1
    while run.add(captured((segment("r", range(16 * taken, 16 * taken + 16), 9999),), states(16, 4096))):
        taken += 1
    assert taken * big.nbytes <= JOINED_BYTES < (taken + 1) * big.nbytes


def test_samples_go_along_with_their_rows() -> None:
    def projected(number: int, sampled: tuple[int, ...]) -> CapturedStep:
        sample = Sample(sampled, states(len(sampled), 16, seed=number)) if sampled else None
        values = NumpyStates(states(3, 5, seed=number).rows, projected=True, sample=sample)
        segments = tuple(segment(name, range(number, number + 1)) for name in "abc")
        return replace(captured(segments, values, number), plan_generation=3)

    steps = [projected(1, (0, 2)), projected(2, ()), projected(3, (1,))]
    run = Joined(steps[0])
    assert all(run.add(one) for one in steps[1:])
    (tensor,) = wire(run.step(), 0).tensors
    assert list(tensor.sample.rows) == [0, 5, 6]  # a: 1 2 3, b: 1 2 3, c: 1 2 3
    raw = np.frombuffer(tensor.sample.raw, "<f4").reshape(3, 16)
    np.testing.assert_array_equal(raw[[0, 2]], states(2, 16, seed=1).rows)
    np.testing.assert_array_equal(raw[1], states(1, 16, seed=3).rows[0])


@given(st.integers(1, 11), st.integers(0, 10))
def test_a_part_of_several_steps_is_that_part_of_the_whole(stop: int, start: int) -> None:
    order = np.array([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7])
    whole = states(5).joined([states(6, seed=1)], order)
    start = min(start, stop - 1)

    def written(what: NumpyStates) -> bytes:
        payload = bytearray(what.shape[0] * 8 * 4)
        what.write(memoryview(payload))
        return bytes(payload)

    assert written(whole.part(start, stop)) == written(whole)[start * 32 : stop * 32]  # type: ignore[arg-type]
