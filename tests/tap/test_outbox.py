from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.limits import LinkLimits
from sidecar.tap.outbox import Finished, Outbox, Report, Stop, Waiting
from sidecar.tap.traffic import TrafficCounts
from sidecar.types import TapLedgerCounts, UnseenReason
from tests.tap.samples import step


def _outbox(**limits: float) -> Outbox:
    return Outbox(LinkLimits(**limits))  # type: ignore[arg-type]  # ints and floats, as named


def _report(tokens: int) -> Report:
    return Report(TrafficCounts(1, tokens, 1, ((UnseenReason.SAMPLING, 2),)), TapLedgerCounts())


def test_steps_that_waited_too_long_are_taken_out_and_nothing_else_moves() -> None:
    outbox = _outbox()
    for name, now_s in (("old", 1.0), ("older", 1.5)):
        assert outbox.add(step(name), now_s)
        outbox.append(Finished((name,)))
    assert outbox.add(step("new"), 3.0)
    outbox.append(Stop(9.0))
    assert [one.segments[0].wire_id for one in outbox.expire(2.0)] == ["old", "older"]
    assert outbox.oldest_s == 3.0
    left = [outbox.pop() for _ in range(len(outbox))]
    assert left[:2] == [Finished(("old",)), Finished(("older",))]
    assert isinstance(left[2], Waiting)
    assert left[3] == Stop(9.0)
    assert (outbox.head, outbox.oldest_s) == (None, math.inf)


def test_room_comes_back_when_steps_leave_by_either_door() -> None:
    outbox = _outbox(queue_batches=2)
    assert [outbox.add(step(), s) for s in (1.0, 2.0, 3.0)] == [True, True, False]
    assert outbox.full
    outbox.expire(1.5)
    assert not outbox.full
    outbox.pop()
    assert [outbox.add(step(), s) for s in (3.0, 4.0, 5.0)] == [True, True, False]


def test_a_report_is_corrected_for_the_steps_that_it_had_counted() -> None:
    outbox = _outbox()
    outbox.add(step(rows=3), 1.0)
    report = _report(30)
    outbox.append(report)
    outbox.add(step(rows=5), 1.5)  # behind it: not counted there
    outbox.expire(2.0)
    assert report.corrected().unseen == ((UnseenReason.SAMPLING, 2), (UnseenReason.TAP_DROPPED, 3))
    assert report.corrected().tokens_computed == 30
    outbox.correct(4)
    assert dict(report.corrected().unseen)[UnseenReason.TAP_DROPPED] == 7
    assert outbox.pop() is report
    assert not outbox.reporting
    outbox.correct(4)
    assert dict(report.corrected().unseen)[UnseenReason.TAP_DROPPED] == 7


@given(st.lists(st.sampled_from(["add", "pop", "report", "expire"]), max_size=40))
def test_a_report_never_claims_a_step_that_is_neither_sent_before_it_nor_told_as_dropped(doings: list[str]) -> None:
    """Computed minus unseen, as a report says it, is never more than what was sent before the report."""
    outbox = _outbox()
    offered = sent = dropped = 0
    for now, doing in enumerate(doings):
        if doing == "add":
            assert outbox.add(step(rows=2), float(now))
            offered += 2
        elif doing == "report" and not outbox.reporting:
            outbox.append(
                Report(TrafficCounts(0, offered, 0, ((UnseenReason.TAP_DROPPED, dropped),)), TapLedgerCounts())
            )
        elif doing == "expire":
            dropped += sum(one.tokens for one in outbox.expire(now - 4.0))
        elif doing == "pop" and outbox.head is not None:
            item = outbox.pop()
            if isinstance(item, Waiting):
                sent += 2
            elif isinstance(item, Report):
                told = item.corrected()
                assert told.tokens_computed - dict(told.unseen)[UnseenReason.TAP_DROPPED] <= sent
    assert offered == sent + dropped + sum(isinstance(outbox.pop(), Waiting) for _ in range(len(outbox))) * 2
