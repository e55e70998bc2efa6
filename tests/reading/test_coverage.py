"""Silence must not look like health: what is blind, why, and how fast."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.clock import ManualClock
from sidecar.config import Coverage as CoverageConfig
from sidecar.reading.coverage import Coverage
from sidecar.reading.plan import Control, Plan, TapPlan
from sidecar.reading.read import TapRead
from sidecar.types import EngineId, Stack, TapLedgerCounts, TapPoint, TrafficReport, UnseenReason
from tests.builders import MODEL, TAP, WIDTH

ENGINE = EngineId("engine-0")
OTHER = TapPoint(2)


def plan_of(*taps: TapPoint, control: bool = True) -> Plan:
    made = {
        tap: TapPlan(
            tap,
            ("c",),
            np.ones((WIDTH, 1), np.float32),
            np.zeros(1, np.float32),
            slice(0, 0),
            slice(0, 0),
            Control(0, -1, 1, 0) if control else None,
        )
        for tap in taps
    }
    return Plan(1, MODEL, made, (), (), np.zeros(0, np.intp), ())


class Traffic:
    """An engine that computes 100 tokens a tenth of a second and reports twice a second."""

    def __init__(self, *taps: TapPoint, control: bool = True) -> None:
        self.clock = ManualClock()
        self.coverage = Coverage(CoverageConfig(), self.clock)
        self.coverage.bind(plan_of(*taps, control=control))
        self.computed = 0
        self.sampled_out = 0
        self.dropped = 0
        self.coverage.register(self.report())
        self.coverage.stream_opened(ENGINE)

    def report(self) -> TrafficReport:
        unseen = ((UnseenReason.SAMPLING, self.sampled_out), (UnseenReason.TAP_DROPPED, self.dropped))
        return TrafficReport(ENGINE, 0, self.computed, unseen, 0, TapLedgerCounts())

    def run(self, seconds: float, *, seen: float = 1.0, control: float = 1.0, sampled: float = 0.0, reports: bool = True,
            taps: tuple[TapPoint, ...] = (TAP,), dropped: float = 0.0, load: int = 100) -> None:  # fmt: skip
        for tick in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.computed += load
            self.sampled_out += int(load * sampled)
            self.dropped += int(load * dropped)
            rows = int(load * seen)
            reads = [TapRead(tap, rows, 0, rows, int(rows * control)) for tap in taps if rows]
            self.coverage.saw(ENGINE, reads)
            if reports and tick % 5 == 4:
                self.coverage.report(self.report())

    def reasons(self) -> dict[str, str]:
        return {one.tap_point.name: one.reason for one in self.coverage.snapshot()[0]}

    def reason(self) -> str:
        return self.reasons()[TAP.name]


def test_all_seen_is_not_blind_and_the_counts_agree():
    traffic = Traffic(TAP)
    traffic.run(20)
    (tap,), blind = traffic.coverage.snapshot()
    assert (tap.expected, tap.seen, tap.reason, blind) == (20_000, 20_000, "", False)


@pytest.mark.parametrize("seen", [0.0, 0.5, 0.95])
def test_lost_tokens_are_blind_within_five_seconds(seen):
    traffic = Traffic(TAP)
    traffic.run(20)
    traffic.run(5, seen=seen)
    assert traffic.reason() == "not_seen"


def test_a_tap_point_that_never_fires_is_blind_and_its_neighbour_is_not():
    traffic = Traffic(TAP, OTHER)
    traffic.run(5, taps=(TAP,))
    assert traffic.reasons() == {TAP.name: "", OTHER.name: "not_seen"}


def test_blindness_ends_when_tokens_are_seen_again_and_stays_while_nothing_flows():
    traffic = Traffic(TAP)
    traffic.run(10, seen=0.0)
    traffic.run(30, load=0)
    assert traffic.reason() == "not_seen"
    traffic.run(6)
    assert traffic.reason() == ""


def test_bursts_between_pauses_are_not_blind():
    traffic = Traffic(TAP)
    for length in (0.1, 0.3, 0.5, 0.7, 1.1, 3.1) * 4:
        traffic.run(length, load=700)
        assert traffic.reason() == ""
        for _ in range(8):
            traffic.run(0.5, load=0)
            assert traffic.reason() == ""


def test_rows_that_run_ahead_of_their_report_hide_no_loss():
    traffic = Traffic(TAP)
    for _ in range(20):
        traffic.run(0.4)
        traffic.coverage.saw(ENGINE, [TapRead(TAP, 100, 0, 100, 100)])  # arrives now, reported with the next step
        traffic.computed += 100
        assert traffic.reason() == ""
        traffic.run(0.5)
    traffic.run(5, seen=0.95)
    assert traffic.reason() == "not_seen"


def test_what_was_sampled_out_is_not_expected():
    traffic = Traffic(TAP)
    traffic.run(10, seen=0.1, sampled=0.9)
    (tap,), _ = traffic.coverage.snapshot()
    assert (tap.expected, tap.seen, tap.reason) == (1000, 1000, "")
    assert traffic.coverage.unseen[UnseenReason.SAMPLING] == 9000


def test_each_stack_is_expected_to_see_its_own_tokens_alone():
    """60 of 100 tokens are an encoder's, 10 of which are left out; of the decoder's 40, 20 are."""
    encoder = TapPoint(1, stack=Stack.ENCODER)
    coverage = Coverage(CoverageConfig(), ManualClock())
    coverage.bind(plan_of(TAP, encoder))

    def report(times: int) -> TrafficReport:
        unseen = ((UnseenReason.SAMPLING, 30 * times),)
        return TrafficReport(ENGINE, 0, 100 * times, unseen, 0, TapLedgerCounts(), 60 * times, 10 * times)

    coverage.register(report(1))
    coverage.stream_opened(ENGINE)
    for step in (2, 3):
        coverage.saw(ENGINE, [TapRead(encoder, 50, 0, 0, 0)])
        coverage.saw(ENGINE, [TapRead(TAP, 20 if step == 2 else 10, 0, 0, 0)])
        coverage.report(report(step))
    found = {one.tap_point: (one.expected, one.seen) for one in coverage.snapshot()[0]}
    assert found == {TAP: (40, 30), encoder: (100, 100)}


def test_what_the_tap_dropped_is_expected_and_says_so():
    traffic = Traffic(TAP)
    traffic.run(6, seen=0.2, dropped=0.8)
    assert traffic.reason() == "tap_dropped"


def test_a_control_out_of_range_is_blind_and_recovers():
    traffic = Traffic(TAP)
    traffic.run(10)
    traffic.run(4, control=0.2)
    assert traffic.reason() == "control_out_of_range"
    traffic.run(4)
    assert traffic.reason() == ""


def test_a_tap_point_without_control_is_blind():
    traffic = Traffic(TAP, control=False)
    traffic.run(3)
    assert traffic.reason() == "no_control"


def test_an_engine_that_stops_reporting_is_blind():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.run(4, reports=False)
    assert traffic.reason() == "no_report"


def test_an_engine_that_vanishes_is_blind_until_it_is_back_and_one_that_leaves_is_not():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.stream_closed(ENGINE)
    assert traffic.reason() == "engine_lost"
    traffic.coverage.register(traffic.report())
    traffic.coverage.stream_opened(ENGINE)
    traffic.run(3)
    assert traffic.reason() == ""
    traffic.coverage.goodbye(ENGINE)
    assert traffic.coverage.snapshot()[1] is False


def test_a_sidecar_that_starts_late_does_not_expect_what_came_before():
    traffic = Traffic(TAP)
    traffic.coverage = Coverage(CoverageConfig(), traffic.clock)
    traffic.coverage.bind(plan_of(TAP))
    traffic.computed = 1_000_000
    traffic.coverage.register(traffic.report())
    traffic.coverage.stream_opened(ENGINE)
    traffic.run(10)
    (tap,), blind = traffic.coverage.snapshot()
    assert (tap.expected, tap.seen, blind) == (10_000, 10_000, False)


def test_what_an_engine_computed_while_its_stream_was_broken_is_expected():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.stream_closed(ENGINE)
    traffic.computed += 5000
    traffic.coverage.register(traffic.report())
    traffic.coverage.stream_opened(ENGINE)
    traffic.run(2)
    assert traffic.reason() == "not_seen"
    assert traffic.coverage.snapshot()[0][0].expected == 10_000


def test_an_engine_that_restarts_counts_anew():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.stream_closed(ENGINE)
    traffic.computed = 0
    traffic.coverage.register(traffic.report())
    traffic.coverage.stream_opened(ENGINE)
    traffic.run(10)
    (tap,), blind = traffic.coverage.snapshot()
    assert (tap.expected, tap.seen, blind) == (13_000, 13_000, False)


def test_a_connected_engine_without_any_plan_is_blind():
    traffic = Traffic()
    assert traffic.coverage.snapshot()[1] is True


def test_a_lost_engine_is_forgotten_in_the_end_and_then_there_is_no_engine():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.stream_closed(ENGINE)
    assert traffic.reason() == "engine_lost"
    traffic.clock.advance(601)
    assert traffic.reason() == "no_engine"
    assert not traffic.coverage.knows(ENGINE)


def test_a_lost_engine_that_only_registers_again_is_still_lost():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.stream_closed(ENGINE)
    traffic.computed += 100_000
    traffic.coverage.register(traffic.report())
    traffic.clock.advance(4.5)
    assert traffic.reason() == "engine_lost"
    traffic.coverage.stream_opened(ENGINE)
    traffic.run(1)
    assert traffic.reason() == "not_seen", "what it computed meanwhile was meant to be seen"


def test_an_engine_that_registers_and_never_sends_is_blind():
    clock = ManualClock()
    coverage = Coverage(CoverageConfig(), clock)
    coverage.bind(plan_of(TAP))
    coverage.register(TrafficReport(ENGINE, 0, 0, (), 0, TapLedgerCounts()))
    assert coverage.snapshot()[1] is False
    clock.advance(4)
    assert coverage.snapshot()[0][0].reason == "no_report"


@pytest.mark.parametrize("crashes", [1, 5, 20])
def test_rows_that_crashes_left_unreported_do_not_hide_a_dead_hook(crashes):
    traffic = Traffic(TAP)
    for _ in range(crashes):
        traffic.run(0.4, reports=False)
        traffic.coverage.stream_closed(ENGINE)
        traffic.computed = 0
        traffic.coverage.register(traffic.report())
        traffic.coverage.stream_opened(ENGINE)
    traffic.run(2.5, seen=0.0)
    assert traffic.reason() == "not_seen"


def test_one_engine_that_runs_ahead_of_its_reports_does_not_hide_the_loss_of_another():
    traffic = Traffic(TAP)
    other = EngineId("engine-1")
    traffic.coverage.register(TrafficReport(other, 0, 0, (), 0, TapLedgerCounts()))
    traffic.coverage.stream_opened(other)
    traffic.coverage.saw(other, [TapRead(TAP, 1_000_000, 0, 0, 0)])
    traffic.run(2, seen=0.5)
    assert traffic.reason() == "not_seen"


def test_no_engine_is_blind_once_it_had_its_time_to_start_unless_none_is_wanted():
    for wanted, blind in ((0, False), (1, True), (2, True)):
        clock = ManualClock()
        coverage = Coverage(CoverageConfig(engines=wanted), clock)
        coverage.bind(plan_of(TAP))
        clock.advance(119)
        assert coverage.snapshot()[1] is False
        clock.advance(2)
        assert coverage.snapshot()[1] is blind


def test_an_engine_that_left_on_purpose_may_stay_away_for_the_grace():
    traffic = Traffic(TAP)
    traffic.run(3)
    traffic.coverage.goodbye(ENGINE)
    traffic.clock.advance(119)
    assert traffic.reason() == ""
    traffic.clock.advance(2)
    assert traffic.reason() == "no_engine"


def test_lost_engines_give_way_to_new_ones():
    traffic = Traffic(TAP)
    assert not traffic.coverage.make_room(1)
    traffic.coverage.stream_closed(ENGINE)
    assert traffic.coverage.make_room(1)
    assert not traffic.coverage.knows(ENGINE)
