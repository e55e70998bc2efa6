"""Passes are done once, kept, and stop when the time is up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.causal.edits import Edits, shifted
from probes.causal.passes import OutOfTimeError, Passes


class Model:
    """Takes ten seconds for a pass, by its own clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0
        self.ticks = 0

    def run(self, _edits: Edits) -> np.ndarray:
        self.runs += 1
        self.now += 10.0
        return np.array([self.runs / 3, -0.1])

    def tick(self) -> None:
        self.ticks += 1

    def passes(self, kept: Path, settings: str = "these", budget_s: float = 1000.0) -> Passes:
        return Passes(self.run, kept, settings, budget_s, tick=self.tick, clock=lambda: self.now)


def edits() -> Edits:
    return Edits(shifted(np.zeros(2), skip=0))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "passes.jsonl"


def test_a_pass_is_run_once_and_found_again_with_every_digit(kept: Path) -> None:
    model = Model()
    first = model.passes(kept)
    assert first.load() == 0
    found = first("a", edits)
    second = model.passes(kept)
    assert second.load() == 1
    assert np.array_equal(second("a", edits), found)
    assert (model.runs, model.ticks) == (1, 2)


def test_a_line_cut_short_by_a_kill_costs_that_pass_alone(kept: Path) -> None:
    model = Model()
    run = model.passes(kept)
    run.load()
    run("a", edits)
    run("b", edits)
    kept.write_text(kept.read_text()[:-20])
    again = model.passes(kept)
    assert again.load() == 1
    again("b", edits)
    assert model.passes(kept).load() == 2


@pytest.mark.parametrize("left", ["", "[1]\n", "7\n", '{"pass": "a", "log_odds": [1.0]}\n'])
def test_a_file_that_is_none_of_ours_counts_for_nothing(kept: Path, left: str) -> None:
    kept.write_text(left)
    assert Model().passes(kept).load() == 0


def test_passes_of_other_settings_are_forgotten(kept: Path) -> None:
    model = Model()
    run = model.passes(kept)
    run.load()
    run("a", edits)
    other = model.passes(kept, "others")
    assert other.load() == 0
    other("a", edits)
    assert model.runs == 2


def test_no_pass_begins_after_the_budget(kept: Path) -> None:
    model = Model()
    run = model.passes(kept, budget_s=15.0)
    run.load()
    run("a", edits)
    run("b", edits)
    with pytest.raises(OutOfTimeError):
        run("c", edits)
    assert model.runs == 2
    assert model.passes(kept).load() == 2


def test_an_intervention_is_not_begun_if_its_passes_do_not_fit(kept: Path) -> None:
    model = Model()
    run = model.passes(kept, budget_s=45.0)
    run.load()
    run("a", edits)
    assert run.affords(["a", "b", "c", "d"])
    assert not run.affords(["b", "c", "d", "e"])
    assert model.passes(kept, budget_s=0.001).affords([])


def test_when_all_is_done_nothing_is_left(kept: Path) -> None:
    run = Model().passes(kept)
    run.load()
    run.forget()
    run.forget()
    assert not kept.exists()
