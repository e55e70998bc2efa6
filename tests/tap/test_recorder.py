from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.client import TapClient
from sidecar.tap.recorder import Recorder, Span
from sidecar.tap.step import CapturedStep, Request, RequestInfo
from sidecar.types import Phase, SamplingPolicy, TapPoint, UnseenReason
from tests.tap.samples import IDENTITY, states

EVERYTHING = SamplingPolicy(1.0)


class Keeper(TapClient):
    """A client whose other end is a list."""

    def __init__(self, *, takes: bool = True, connected: bool = True, congested: bool = False) -> None:
        super().__init__("unix:/nowhere.sock", IDENTITY, engine_id="engine")
        self.crowded = congested
        self.takes = takes
        self.there = connected
        self.steps: list[CapturedStep] = []
        self.ended: list[str] = []

    @property
    def connected(self) -> bool:
        return self.there

    @property
    def congested(self) -> bool:
        return self.crowded

    def submit(self, step: CapturedStep) -> bool:
        if not self.takes:
            return super().submit(step)
        self.steps.append(step)
        return True

    def finish(self, request_ids: Iterable[str]) -> None:
        self.ended += request_ids


def run(recorder: Recorder, *spans: Span, fires: bool = True) -> None:
    recorder.begin(spans)
    step = recorder.open
    if fires and step is not None and step.wanted:
        recorder.keep(TapPoint(1), states(len(step.rows)))
    recorder.end()


def request(recorder: Recorder, name: str = "r", prompt: int = 4) -> Request:
    return recorder.request(RequestInfo(name), prompt)


def told(client: TapClient) -> tuple[int, dict[UnseenReason, int]]:
    counts = client.traffic.counts()
    return counts.tokens_computed, dict(counts.unseen)


def test_rows_positions_and_phases_are_the_schedulers() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    a, b = request(recorder, "a", 3), request(recorder, "b", 2)
    run(recorder, Span(a, 0, 0, 3), Span(b, 3, 0, 2))
    run(recorder, Span(b, 0, 2, 1), Span(a, 1, 3, 1))
    first, second = client.steps
    assert [(s.wire_id, list(s.positions), s.phase) for s in first.segments] == [
        ("a", [0, 1, 2], Phase.PREFILL),
        ("b", [0, 1], Phase.PREFILL),
    ]
    assert [(s.wire_id, list(s.positions), s.phase) for s in second.segments] == [
        ("b", [2], Phase.DECODE),
        ("a", [3], Phase.DECODE),
    ]
    assert told(client) == (7, {})
    assert client.traffic.counts().requests == 2


def test_a_hook_that_never_fires_changes_no_count_and_leaves_its_tap_point_out() -> None:
    seen, blind = Keeper(), Keeper()
    for client, fires in ((seen, True), (blind, False)):
        recorder = Recorder(client, EVERYTHING)
        run(recorder, Span(request(recorder), 0, 0, 4), fires=fires)
    assert told(seen) == told(blind) == (4, {})
    assert [point for point, _ in seen.steps[0].tensors] == [TapPoint(1)]
    assert blind.steps[0].tensors == ()
    assert blind.steps[0].segments == seen.steps[0].segments


def test_an_unchosen_request_is_counted_and_has_no_segment() -> None:
    client = Keeper()
    recorder = Recorder(client, SamplingPolicy(0.0))
    one = request(recorder)
    run(recorder, Span(one, 0, 0, 4))
    recorder.finish([one])
    assert (client.steps, client.ended) == ([], [])
    assert told(client) == (4, {UnseenReason.SAMPLING: 4})


def test_left_out_tokens_are_told_with_the_requests_next_rows() -> None:
    client = Keeper()
    recorder = Recorder(client, SamplingPolicy(1.0, token_stride=4))
    one = request(recorder, prompt=2)
    run(recorder, Span(one, 0, 0, 2))
    for position in range(2, 9):
        run(recorder, Span(one, 0, position, 1))
    assert [list(s.segments[0].positions) for s in client.steps] == [[0], [4], [8]]
    assert [s.segments[0].unseen for s in client.steps] == [((UnseenReason.SAMPLING, n),) for n in (1, 2, 3)]
    assert told(client) == (9, {UnseenReason.SAMPLING: 6})


def test_a_jump_at_first_sight_is_a_cached_prefix() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    run(recorder, Span(request(recorder, prompt=300), 0, 256, 44))
    (segment,) = client.steps[0].segments
    assert segment.unseen == ((UnseenReason.PREFIX_CACHE, 256),)
    assert told(client) == (44, {UnseenReason.PREFIX_CACHE: 256})


def test_positions_computed_again_after_a_preemption_are_not_sent_twice() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    one = request(recorder)
    run(recorder, Span(one, 0, 0, 6))
    run(recorder, Span(one, 0, 0, 8))
    run(recorder, Span(one, 0, 3, 2))
    assert [list(s.segments[0].positions) for s in client.steps] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert told(client) == (16, {UnseenReason.SAMPLING: 8})


def test_two_rows_under_one_id_in_one_step_are_not_mixed_up() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    one = request(recorder)
    run(recorder, Span(one, 0, 0, 2), Span(one, 2, 2, 3))
    assert [list(s.positions) for s in client.steps[0].segments] == [[0, 1]]
    assert told(client) == (5, {UnseenReason.UNSUPPORTED: 3})


def test_a_step_that_nobody_takes_is_counted_and_told_later() -> None:
    client = Keeper(takes=False)
    recorder = Recorder(client, EVERYTHING)
    one = request(recorder)
    run(recorder, Span(one, 0, 0, 3))
    client.takes = True
    run(recorder, Span(one, 0, 3, 1))
    assert client.steps[0].segments[0].unseen == ((UnseenReason.TAP_DROPPED, 3),)
    assert told(client) == (4, {UnseenReason.TAP_DROPPED: 3})
    assert client.counts().dropped == 1


@pytest.mark.parametrize("why", [{"connected": False}, {"congested": True}], ids=["no sidecar", "a crowded way"])
def test_where_a_step_would_not_be_sent_no_row_is_copied(why: dict[str, bool]) -> None:
    client = Keeper(**why)
    recorder = Recorder(client, EVERYTHING)
    recorder.begin([Span(request(recorder), 0, 0, 3)])
    assert recorder.open is not None
    assert not recorder.open.wanted
    recorder.end()
    assert told(client) == (3, {UnseenReason.TAP_DROPPED: 3})
    assert client.counts().dropped == 1


def test_a_failing_hook_costs_its_step_only() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    one = request(recorder)
    recorder.begin([Span(one, 0, 0, 3)])
    recorder.fail()
    recorder.end()
    run(recorder, Span(one, 0, 3, 1))
    assert [list(s.segments[0].positions) for s in client.steps] == [[3]]
    assert told(client) == (4, {UnseenReason.UNSUPPORTED: 3})


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_adapter_left_for_the_end_is_done_before_the_step_is_handed_over_unless_it_failed(fails: bool) -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    recorder.begin([Span(request(recorder), 0, 0, 2)])
    step = recorder.open
    assert step is not None
    step.at_end = lambda: recorder.keep(TapPoint(3), states(2))
    if fails:
        recorder.fail()
    recorder.end()
    assert [[point for point, _ in one.tensors] for one in client.steps] == ([] if fails else [[TapPoint(3)]])
    assert told(client) == (2, {UnseenReason.UNSUPPORTED: 2} if fails else {})
    assert recorder.open is None


def test_a_step_that_never_ends_is_counted_when_the_next_one_begins() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    recorder.begin([Span(request(recorder, "a"), 0, 0, 3)])
    run(recorder, Span(request(recorder, "b"), 0, 0, 2))
    assert [s.segments[0].wire_id for s in client.steps] == ["b"]
    assert told(client) == (5, {UnseenReason.UNSUPPORTED: 3})


@pytest.mark.parametrize("begun", [False, True], ids=["before the step began", "within it"])
def test_tokens_of_a_step_that_is_given_up_are_counted_once(begun: bool) -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    one = request(recorder)
    if begun:
        recorder.begin([Span(one, 0, 0, 3)])
        recorder.keep(TapPoint(1), states(3))
    recorder.give_up(3)
    assert recorder.open is None
    assert client.steps == []
    assert told(client) == (3, {UnseenReason.UNSUPPORTED: 3})
    run(recorder, Span(one, 0, 3, 1))
    assert [list(s.segments[0].positions) for s in client.steps] == [[3]]
    assert told(client)[0] == 4


def test_only_requests_that_had_rows_are_told_as_ended() -> None:
    client = Keeper()
    recorder = Recorder(client, EVERYTHING)
    seen, unseen = request(recorder, "seen"), request(recorder, "unseen")
    run(recorder, Span(seen, 0, 0, 1))
    recorder.finish([seen, unseen])
    assert client.ended == ["seen"]


def test_a_decision_holds_for_the_requests_life_whatever_the_policy_becomes() -> None:
    client = Keeper()
    recorder = Recorder(client)
    client.settings = type(client.settings)(1, SamplingPolicy(1.0))
    one = request(recorder)
    client.settings = type(client.settings)(2, SamplingPolicy(0.0))
    run(recorder, Span(one, 0, 0, 2))
    run(recorder, Span(request(recorder, "late"), 0, 0, 2))
    assert [s.segments[0].wire_id for s in client.steps] == ["r"]


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_computed_is_always_seen_plus_unseen(chunks: list[list[int]], stride: int, salt: int) -> None:
    client = Keeper()
    recorder = Recorder(client, SamplingPolicy(0.5, stride, 1, 1))
    requests = [request(recorder, f"{salt}-{i}", 9) for i in range(3)]
    reached = [0, 0, 0]
    for lengths in chunks:
        spans, row = [], 0
        for i, length in enumerate(lengths):
            spans.append(Span(requests[i], row, reached[i], length))
            reached[i] += length
            row += length
        run(recorder, *spans)
    computed, unseen = told(client)
    seen = sum(step.tokens for step in client.steps)
    assert computed == sum(reached) == seen + sum(unseen.values())
    for step in client.steps:
        assert step.tokens == sum(len(segment.positions) for segment in step.segments)
