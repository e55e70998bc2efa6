"""The ladder by itself: what moves it, what must not, and that it comes to rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.clock import ManualClock
from sidecar.config import Ladder as LadderConfig
from sidecar.ladder import Effects, Ladder, fewer, shed
from sidecar.snapshot import Rung
from sidecar.types import TapPoint

ORDER = list(Rung)
FINE, OVER = 0.2, 3.0


@dataclass
class Course:
    """A ladder on a clock of its own, and every move that it made: (when, rung)."""

    config: LadderConfig = field(default_factory=LadderConfig)
    clock: ManualClock = field(default_factory=ManualClock)
    moves: list[tuple[float, Rung]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ladder = Ladder(self.config, self.clock)

    def step(self, use: float, age_s: float = 0.0) -> None:
        self._note(self.ladder.step(use, age_s))

    def tick(self) -> None:
        self._note(self.ladder.tick())

    def _note(self, rung: Rung | None) -> None:
        if rung is not None:
            assert rung is self.ladder.rung
            self.moves.append((self.clock.now_s, rung))

    def steady(self, use: float, seconds: float, rate: float = 100.0, age_s: float = 0.0) -> None:
        for _ in range(round(seconds * rate)):
            self.clock.advance(1 / rate)
            self.step(use, age_s)

    def idle(self, seconds: float, every_s: float = 0.1) -> None:
        for _ in range(round(seconds / every_s)):
            self.clock.advance(every_s)
            self.tick()

    def descend(self, rung: Rung) -> None:
        while self.ladder.rung is not rung:
            self.steady(OVER, 0.1)


# down


def test_pressure_leads_down_rung_by_rung_to_off():
    course = Course()
    course.steady(OVER, 6.5)
    assert [rung for _, rung in course.moves] == ORDER[1:]
    assert [round(b - a, 1) for (a, _), (b, _) in pairwise(course.moves)] == [1.0] * 4


def test_the_reason_says_in_plain_words_what_was_seen():
    course = Course()
    for number in range(100):
        course.clock.advance(0.01)
        course.step(OVER if number % 8 == 0 else FINE)
    assert course.ladder.rung is Rung.NO_SKETCHES
    assert course.ladder.reason == "13 % of steps over budget"
    course = Course()
    course.steady(FINE, 1.1, age_s=0.035)
    assert course.ladder.reason == "waiting 35 ms for a turn"


@pytest.mark.parametrize("limit_ms", [5.0, 20.0, 80.0])
def test_waiting_for_a_turn_counts_whatever_the_use(limit_ms):
    course = Course(LadderConfig(queue_age_ms=limit_ms))
    course.steady(FINE, 10.0, age_s=0.95e-3 * limit_ms)
    assert course.ladder.rung is Rung.FULL
    course.steady(FINE, 2.2, age_s=1.05e-3 * limit_ms)
    assert course.moves[0][1] is Rung.NO_SKETCHES


def test_a_number_that_is_none_counts_as_over():
    course = Course()
    course.steady(float("nan"), 1.1)
    assert course.ladder.rung is Rung.NO_SKETCHES


@pytest.mark.parametrize("rate", [0.6, 2.0, 7.0, 30.0, 1000.0])
def test_at_any_rate_steps_over_budget_lead_down(rate):
    course = Course()
    course.steady(OVER, 12.0, rate)
    assert course.moves[0][1] is Rung.NO_SKETCHES
    assert course.moves[0][0] <= max(1.1, 11 / rate)


@pytest.mark.parametrize("rate", [0.6, 2.0, 7.0, 30.0, 1000.0])
def test_one_slow_step_now_and_then_moves_nothing_at_any_rate(rate):
    course = Course()
    for _ in range(20):
        course.steady(FINE, 20 / rate, rate)
        course.clock.advance(1 / rate)
        course.step(50.0)
    assert course.moves == []


@pytest.mark.parametrize("rate", [10.0, 30.0, 100.0, 1000.0])
def test_a_stall_and_all_that_waited_behind_it_move_nothing(rate):
    """A garbage collection of 150 ms: one slow step, and those that came meanwhile were late."""
    course = Course()
    for _ in range(20):
        course.steady(FINE, 5.0, rate)
        course.clock.advance(0.15)
        course.step(25.0)
        for late in range(int(0.15 * rate)):
            course.clock.advance(0.0005)
            course.step(25.0, 0.15 - late / rate)
    assert course.moves == []


def test_steps_in_bursts_are_judged_too():
    course = Course()
    for _ in range(5):
        course.clock.advance(1.0)
        for _ in range(20):
            course.clock.advance(0.001)
            course.step(OVER)
    assert course.moves


def test_what_had_waited_since_before_the_change_is_no_witness_against_the_new_rung():
    backlog, fresh = Course(), Course()
    for course in (backlog, fresh):
        course.descend(Rung.NO_SKETCHES)
    backlog.steady(OVER, 0.9, age_s=0.9)
    backlog.steady(FINE, 1.0)
    fresh.steady(OVER, 0.9)
    fresh.steady(FINE, 1.0)
    assert backlog.ladder.rung is Rung.NO_SKETCHES
    assert fresh.ladder.rung is Rung.TOKEN_STRIDE


def test_a_queue_that_stays_long_leads_further_down():
    course = Course()
    course.steady(OVER, 7.0, age_s=30.0)
    assert course.ladder.rung is Rung.OFF


# up


def test_room_leads_up_rung_by_rung_to_full():
    course = Course(LadderConfig(up_s=5.0))
    course.descend(Rung.OFF)
    course.moves.clear()
    course.steady(FINE, 30.0)
    assert [rung for _, rung in course.moves] == ORDER[-2::-1]
    assert min(b - a for (a, _), (b, _) in pairwise(course.moves)) >= 5.0
    assert course.ladder.reason == ""


def test_an_idle_sidecar_climbs_up_by_ticks_alone():
    course = Course()
    course.descend(Rung.FEWER_TAP_POINTS)
    course.idle(25.0)
    assert course.ladder.rung is Rung.FULL


def test_a_few_steps_a_second_with_room_lead_up_too():
    course = Course()
    course.descend(Rung.NO_SKETCHES)
    course.steady(FINE, 15.0, rate=2.0)
    assert course.ladder.rung is Rung.FULL


def test_where_nothing_is_read_only_time_leads_up():
    course = Course()
    course.descend(Rung.OFF)
    course.steady(OVER, 7.0, age_s=10.0)
    assert [rung for _, rung in course.moves[-2:]] == [Rung.LOWER_SAMPLING, Rung.OFF]


def test_between_low_and_high_it_stays():
    course = Course()
    course.descend(Rung.TOKEN_STRIDE)
    course.moves.clear()
    course.steady(0.8, 60.0)
    assert course.moves == []


def test_a_break_in_the_room_starts_the_wait_anew():
    course = Course(LadderConfig(up_s=5.0))
    course.descend(Rung.NO_SKETCHES)
    course.moves.clear()
    for _ in range(5):
        course.steady(FINE, 3.0)
        course.steady(0.8, 1.5)
    assert course.moves == []


def failing(course: Course, times: int) -> list[float]:
    """Ways up from the first rung that fail at once; how long each was waited for."""
    waits = []
    for _ in range(times):
        course.descend(Rung.NO_SKETCHES)
        start = course.clock.now_s
        while course.ladder.rung is Rung.NO_SKETCHES:
            course.steady(FINE, 0.5)
        waits.append(course.clock.now_s - start)
    return waits


def test_a_way_up_that_fails_is_tried_after_twice_the_wait_up_to_a_bound():
    waits = failing(Course(LadderConfig(up_s=4.0, max_up_s=30.0)), 6)
    assert waits == pytest.approx([4, 8, 16, 30, 30, 30], abs=1.6)


def test_a_way_up_that_held_makes_it_forget():
    course = Course(LadderConfig(up_s=4.0, max_up_s=30.0))
    failing(course, 4)
    course.steady(FINE, 4 * 30.0)
    assert failing(course, 1) == pytest.approx([4], abs=1.6)


def test_one_rungs_failures_make_no_other_way_up_slow():
    course = Course(LadderConfig(up_s=4.0, max_up_s=300.0))
    failing(course, 5)
    course.descend(Rung.LOWER_SAMPLING)
    start = course.clock.now_s
    while course.ladder.rung is not Rung.NO_SKETCHES:
        course.steady(FINE, 0.5)
    assert course.clock.now_s - start < 3 * 4.0 + 5


# what is told


def test_it_tells_how_long_it_stands_where_and_how_often_it_came_there():
    course = Course()
    course.descend(Rung.TOKEN_STRIDE)
    course.clock.advance(3.0)
    assert course.ladder.since_s == pytest.approx(3.0)
    course.idle(30.0)
    entered = {rung: count for rung, count in course.ladder.changes.items() if count}
    assert entered == {Rung.FULL: 1, Rung.NO_SKETCHES: 2, Rung.TOKEN_STRIDE: 1}


def test_a_ladder_that_is_not_enabled_stays_at_full():
    course = Course(LadderConfig(enabled=False))
    course.steady(OVER, 10.0, age_s=5.0)
    assert (course.ladder.rung, course.moves) == (Rung.FULL, [])


KNOBS = {
    "window_s": (0.4, 4.0, OVER),
    "high": (2.0, 5.0, OVER),
    "over_share": (0.5, 1.0, None),
}


@pytest.mark.parametrize(("knob", "values"), KNOBS.items(), ids=KNOBS.keys())
def test_every_knob_of_the_way_down_has_an_effect(knob, values):
    eager, patient, use = values
    found = []
    for value in (eager, patient):
        course = Course(LadderConfig.model_validate({knob: value}))
        for number in range(150):
            course.clock.advance(0.01)
            course.step(use if use is not None else (OVER if number % 10 else FINE))
        found.append(bool(course.moves))
    assert found == [True, False]


def test_low_says_how_much_room_is_enough():
    for low, rung in ((0.5, Rung.NO_SKETCHES), (0.7, Rung.FULL)):
        course = Course(LadderConfig(low=low))
        course.descend(Rung.NO_SKETCHES)
        course.steady(0.6, 8.0)
        assert course.ladder.rung is rung


# on any input

EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.7, 3.0, 60.0]),  # time that passes before
        st.sampled_from([0.0, 0.4, 0.8, 1.5, 100.0, float("nan"), float("inf"), None]),  # budget used; None is a tick
        st.sampled_from([0.0, 0.015, 0.5, 90.0, -1.0]),  # wait for a turn
        st.integers(1, 60),  # so often
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.sampled_from([0.0, 0.1, 1.0]))
def test_on_any_input_no_rung_is_skipped_and_no_way_is_faster_than_its_wait(events, share):
    course = Course(LadderConfig(over_share=share, up_s=5.0, window_s=1.0))
    for gap_s, use, age_s, times in events:
        for _ in range(times):
            course.clock.advance(gap_s)
            course.tick() if use is None else course.step(use, age_s)
    before, before_s = Rung.FULL, 0.0
    for at_s, rung in course.moves:
        by = ORDER.index(rung) - ORDER.index(before)
        assert by in (-1, 1)
        assert at_s - before_s >= (1.0 if by == 1 else 5.0) - 1e-6
        before, before_s = rung, at_s
    assert sum(course.ladder.changes.values()) == len(course.moves)
    assert (course.ladder.reason == "") == (course.ladder.rung is Rung.FULL)
    course.idle(5 * 310.0, every_s=1.0)  # whatever was, quiet ends it
    assert course.ladder.rung is Rung.FULL


@settings(max_examples=20, deadline=None)
@given(st.floats(1.01, 1e6), st.floats(0.7, 2000.0))
def test_pressure_that_never_ends_leads_to_off_without_a_way_up(use, rate):
    course = Course()
    while course.ladder.rung is not Rung.OFF:
        course.clock.advance(1 / rate)
        course.step(use)
    assert [rung for _, rung in course.moves] == ORDER[1:]


# a sidecar in miniature

LEFT = {Rung.FULL: 1.0, Rung.NO_SKETCHES: 0.8, Rung.TOKEN_STRIDE: 0.4, Rung.FEWER_TAP_POINTS: 0.2}
LEFT |= {Rung.LOWER_SAMPLING: 0.05, Rung.OFF: 0.001}
RATE = 100.0


@dataclass
class Plant:
    """A worker that needs load x what the rung leaves of its time: more than all of it makes a queue, bounded as rings are."""

    course: Course
    noise: np.random.Generator
    queue_s: float = 0.0

    def run(self, load: float, seconds: float) -> np.ndarray:
        """The use of every step [steps]."""
        uses = load * self.noise.lognormal(0.0, 0.1, round(seconds * RATE))
        for number, full in enumerate(uses):
            self.course.clock.advance(1 / RATE)
            use = full * LEFT[self.course.ladder.rung]
            self.queue_s = min(max(self.queue_s + (use - 1) / RATE, 0.0), 0.2)
            uses[number] = use
            self.course.step(use, self.queue_s)
        return uses


@pytest.mark.parametrize("seed", range(5))
def test_a_plant_under_twice_and_ten_times_its_load_settles_below_its_budget_and_seldom_moves(seed):
    plant = Plant(Course(), np.random.default_rng(seed))
    rungs, over = [], []
    for load, seconds in ((0.5, 60.0), (1.0, 120.0), (5.0, 120.0), (0.5, 300.0)):
        uses = plant.run(load, seconds)
        over.append(float((uses[-int(60 * RATE) :] > 1.0).mean()))  # of the last minute
        rungs.append(plant.course.ladder.rung)
    assert rungs == [Rung.FULL, Rung.NO_SKETCHES, Rung.LOWER_SAMPLING, Rung.FULL]
    assert max(over) < 0.03
    assert len(plant.course.moves) <= 20


# what a rung means


def test_every_rung_sheds_what_the_one_above_it_shed_and_something_more():
    assert shed(Rung.FULL) == Effects()
    for above, below in pairwise(map(shed, ORDER)):
        assert above != below
        assert below.account_every >= above.account_every
        assert below.token_stride >= above.token_stride
        assert below.fewer_tap_points >= above.fewer_tap_points
        assert below.sampling_factor <= above.sampling_factor
        assert below.off >= above.off
    assert replace(shed(Rung.OFF), off=False) == shed(Rung.LOWER_SAMPLING)


def test_of_the_tap_points_those_stay_whose_signals_decide():
    points = [TapPoint(layer) for layer in (3, 7, 11, 15)]
    assert fewer(points, {points[1]}) == (points[1],)
    assert fewer(points, {TapPoint(30)}) == (points[0], points[2])
    assert fewer(points[:1], ()) == (points[0],)
    assert fewer([], ()) == ()
