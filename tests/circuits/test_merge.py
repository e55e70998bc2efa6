"""Merging replicas: equal to one sketch over all, bit for bit, in any order; and what must not be added is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar.circuits.activity import Rows
from sidecar.circuits.merge import OtherHashError, OverlapError, merge
from sidecar.circuits.sessions import Sessions, Share
from sidecar.circuits.sketch import LiveSketch
from tests.circuits.live import read, row, step, two


def sketched(rows: list[Rows], source: str, share: Share) -> list:
    """What one replica archives of these steps: a tick each."""
    bank = two()
    live, sessions = LiveSketch(bank, source, 60), Sessions(bank, share)
    made = []
    for tick, one in enumerate(rows):
        activity = read(bank, one)
        live.add(activity)
        live.bet(sessions.take(activity, tick))
        made += live.close(tick)
    return made


def dealt(rows: Rows, owner: np.ndarray, mine: int) -> Rows:
    at = np.flatnonzero(owner[rows.sessions] == mine)
    return Rows(rows.readings[at], rows.positions[at], rows.slices[at], rows.sessions[at], rows.session_ids)


def test_random_shardings_merge_to_the_same_bits_as_one_sketch_over_all(full):
    rng = np.random.default_rng(0)
    steps = [step(rng, 150, sessions=24) for _ in range(2)]
    for one in steps:
        one.readings[rng.random(one.readings.shape) < 0.01] = np.nan
    whole = [replace(row, sources=()) for row in merge(sketched(steps, "all", Share())).rows]
    for _ in range(1000 if full else 40):
        replicas = int(rng.integers(2, 6))
        owner = rng.integers(0, replicas, 24)
        parts = [
            found
            for mine in range(replicas)
            for found in sketched([dealt(one, owner, mine) for one in steps], str(mine), Share())
        ]
        rng.shuffle(parts)
        middle = int(rng.integers(0, len(parts) + 1))
        halves = (*merge(parts[:middle]).rows, *merge(parts[middle:]).rows)
        for made in (merge(parts), merge(halves)):
            assert [replace(row, sources=()) for row in made.rows] == whole
            assert made.repeated == 0


def test_a_row_that_comes_again_alone_or_inside_a_merge_counts_once():
    a, b = row([1, 2], source="a"), row([3, 4], source="b")
    both = merge([a, b]).rows
    again = merge([a, *both, b, a])
    assert again.rows == both
    assert again.repeated == 3
    assert both[0].evidence.tolist() == [4, 6]


@pytest.mark.parametrize("change", [{"model_hash": "x" * 64}, {"spec_hash": "x" * 64}, {"tick_s": 5}])
def test_another_model_spec_or_length_of_tick_is_never_added(change):
    with pytest.raises(OtherHashError, match="two of its"):
        merge([row([1, 2]), row([1, 2], tick=1, source="b", **change)])


def test_another_circuit_of_another_spec_is_no_conflict():
    assert len(merge([row([1, 2]), row([1, 2], circuit="copying", spec_hash="x" * 64)]).rows) == 2


def test_sums_that_share_a_source_are_refused_for_they_would_count_it_twice():
    a, b, c = (row([1, 1], source=name) for name in "abc")
    with pytest.raises(OverlapError, match="in two sums"):
        merge([*merge([a, b]).rows, *merge([b, c]).rows])


def test_the_same_source_and_tick_with_other_counts_is_refused():
    with pytest.raises(OverlapError, match="differ from themselves"):
        merge([row([1, 2]), row([2, 1])])
