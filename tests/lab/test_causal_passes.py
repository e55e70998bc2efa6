"""Passes are done once, kept, and stop when the time is up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probes.causal.edits import Edits, shifted
from probes.causal.passes import OutOfTimeError, Passes
from probes.journal import Journal


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

    def passes(self, kept: Path, budget_s: float = 1000.0) -> Passes[Edits]:
        journal = Journal(kept, "these")
        journal.load()
        return Passes(self.run, journal, budget_s, tick=self.tick, clock=lambda: self.now)


def edits() -> Edits:
    return Edits((shifted(np.zeros(2), skip=0),))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "passes.jsonl"


def test_a_pass_is_run_once_and_found_again_with_every_digit(kept: Path) -> None:
    model = Model()
    found = model.passes(kept)("a", edits)
    assert np.array_equal(model.passes(kept)("a", edits), found)
    assert (model.runs, model.ticks) == (1, 2)


def test_no_pass_begins_after_the_budget(kept: Path) -> None:
    model = Model()
    run = model.passes(kept, budget_s=15.0)
    run("a", edits)
    run("b", edits)
    with pytest.raises(OutOfTimeError):
        run("c", edits)
    assert model.runs == 2
    model.passes(kept)("b", edits)
    assert model.runs == 2


def test_an_intervention_is_not_begun_if_its_passes_do_not_fit(kept: Path) -> None:
    model = Model()
    run = model.passes(kept, budget_s=45.0)
    run("a", edits)
    assert run.affords(["a", "b", "c", "d"])
    assert not run.affords(["b", "c", "d", "e"])
    assert model.passes(kept, budget_s=0.001).affords([])
