from __future__ import annotations

import json

import numpy as np
import pytest

from bench.crowd import Crowded
from bench.machine import describe
from bench.row import Row, median_interval, ratio, ratio_of_rounds, write
from bench.scaling import Curve, Scaling


def test_a_ratio_is_taken_round_by_round():
    row = ratio("r", [2.0, 40.0, 6.0], [1.0, 20.0, 3.0])
    assert row.value == 2.0
    assert row.interval == (2.0, 2.0)


def test_an_interval_covers_the_median_95_times_in_100():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        _, (low, high) = median_interval(rng.normal(size=25))
        covered += low <= 0.0 <= high
    assert covered >= 180


@pytest.mark.parametrize(("value", "least", "most"), [(1.0, True, True), (0.99, False, True), (1.01, True, False)])
def test_a_goal_is_met_or_missed_by_the_value_alone(value, least, most):
    row = Row("r", value)
    assert row.at_least(1.0).met is least
    assert row.at_most(1.0).met is most


def test_results_name_the_machine_first_and_every_row_in_full(tmp_path):
    write(describe(), [Row("r", 2.0, interval=(1.0, 3.0), note="n").at_least(3, 4)], tmp_path / "results.json")
    machine, row = json.loads((tmp_path / "results.json").read_text())
    assert machine["name"] == "machine"
    assert {"cpu", "cores", "flags", "kernel", "python", "versions"} <= machine["value"].keys()
    assert row == {
        "name": "r",
        "value": 2.0,
        "goal": ">= 3 (stretch 4)",
        "met": False,
        "interval": [1.0, 3.0],
        "note": "n",
    }


def test_a_ratio_that_keeps_its_rounds_is_the_same_and_its_rounds_are_in_the_results(tmp_path):
    over, under = np.array([2.0, 40.0, 9.0]), [1.0, 20.0, 3.0]
    kept = ratio_of_rounds("r", over, under, ("tapped s", "untapped s")).at_most(5.0)
    plain = ratio("r", over, under)
    assert (kept.value, kept.interval, kept.met) == (plain.value, plain.interval, True)
    write(describe(), [plain, kept], tmp_path / "results.json")
    _, without, row = json.loads((tmp_path / "results.json").read_text())
    assert "rounds" not in without
    assert row["rounds"] == {"tapped s": [2.0, 40.0, 9.0], "untapped s": [1.0, 20.0, 3.0]}


def test_a_curve_finds_its_line_and_owns_up_to_a_bend():
    x = (1, 2, 4, 8, 16)
    straight = Curve("rows", x, tuple(30.0 + 5.0 * one for one in x), ((0.0, 0.0),) * 5)
    base, each = straight.line
    assert (base, each) == (pytest.approx(30.0), pytest.approx(5.0))
    assert straight.r2 == pytest.approx(1.0)
    assert Curve("rows", x, (1.0, 1.0, 1.0, 1.0, 99.0), ((0.0, 0.0),) * 5).r2 < 0.9


def test_the_knee_is_where_waits_double_and_stay_so_and_a_busy_moment_is_none():
    crowds = [Crowded(taps, 1.0, p99, taps / 10, 100.0) for taps, p99 in ((1, 9.0), (2, 3.0), (3, 6.1), (4, 20.0))]
    knee = Scaling((), tuple(crowds)).knee
    assert knee is not None
    assert knee.taps == 3
    assert Scaling((), tuple(crowds[:2])).knee is None
