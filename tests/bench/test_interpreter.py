"""The stand-in for an engine bound by Python: every contender had its turns, and what should be fewer is fewer."""

from __future__ import annotations

import numpy as np
import pytest

from bench.interpreter import AGAIN, ALONE, AT_ONCE, LINGERING, rows_of, turns

ROUNDS, STEPS = 3, 80


@pytest.mark.process
@pytest.mark.timeout(300)
def test_steps_go_together_and_the_taps_other_threads_have_less_to_do():
    made = turns(0.1, ROUNDS, STEPS)
    assert {name: len(rounds) for name, rounds in made.rounds.items()} == dict.fromkeys(
        (ALONE, AT_ONCE, AGAIN, LINGERING), ROUNDS
    )
    assert (made.dropped, made.batches_per_step < 0.7) == (0, True)  # 20 ms are 7 steps; a busy machine's are longer
    for name in (ALONE, AGAIN):
        assert all(one.tap_s == 0 for one in made.rounds[name])
    others = {name: float(np.median([one.others_s for one in made.rounds[name]])) for name in (AT_ONCE, LINGERING)}
    assert others[LINGERING] < others[AT_ONCE]  # two fifths of it, where it was measured
    rows = {row.name: row for row in rows_of(made, "a tenth")}
    assert rows["batches dropped or unanswered, a tenth, lingering 20 ms"].met
    assert all(row.interval is not None for name, row in rows.items() if name.startswith("throughput"))
