"""The live sketch counts what a plain loop counts, in integers, within the memory that it states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.circuits.activity import Activity
from sidecar.circuits.circuit import BINS, Bank
from sidecar.circuits.sketch import LiveSketch
from tests.circuits.live import circuit, read, step, two


def plainly(bank: Bank, activity: Activity) -> dict[tuple[str, str], dict[str, list[int]]]:
    """Every count by the book, one row after the other."""
    found = {}
    for at, name in enumerate(bank.slices):
        for number, one in enumerate(bank.circuits):
            first = int(bank.node_starts[number])
            nodes = activity.nodes[first : first + len(one.nodes)].T
            mine = activity.slices == at
            rows = nodes[mine & activity.sound[number]]
            fixed = np.rint(np.clip(rows, -31.9, 31.9).astype(np.float32) * np.float32(256)).astype(np.int64)
            active = rows > 0
            scores = activity.scores[number][mine & activity.sound[number]]
            bins = np.clip(np.floor((scores - one.low) * (BINS / (one.high - one.low))), 0, BINS - 1).astype(int)
            i, j = np.triu_indices(len(one.nodes))
            found[one.name, name] = {
                "rows": len(rows),
                "engaged": int(activity.engaged[number][mine].sum()),
                "non_finite": int(mine.sum()) - len(rows),
                "clipped": int((np.abs(rows) > np.float32(31.9)).sum()),
                "sums": fixed.sum(axis=0).tolist(),
                "squares": (fixed**2).sum(axis=0).tolist(),
                "pairs": (active[:, i] & active[:, j]).sum(axis=0).tolist(),
                "scores": np.bincount(bins, minlength=BINS).tolist(),
            }
    return found


def told(rows) -> dict[tuple[str, str], dict[str, list[int]]]:
    singles, parts = ("rows", "engaged", "non_finite", "clipped"), ("sums", "squares", "pairs", "scores")
    return {
        (one.key.circuit, one.key.slice): {name: one.single(name) for name in singles}
        | {name: one.part(name).tolist() for name in parts}
        for one in rows
    }


@pytest.mark.parametrize("count", [1, 63, 64, 65, 500])
def test_it_counts_what_a_plain_loop_counts(count):
    bank = two()
    rows = step(np.random.default_rng(count), count)
    rows.readings[:] *= 12  # some are clipped
    rows.readings[:: max(1, count // 5), 1] = np.nan
    activity = read(bank, rows)
    live = LiveSketch(bank, "a", 60)
    live.add(activity)
    assert told(live.close(7)) == {key: one for key, one in plainly(bank, activity).items() if any_of(one, activity)}


def test_values_that_are_large_beyond_any_sum_are_clipped_and_counted_like_others():
    bank = two()
    rows = step(np.random.default_rng(3), 130)
    rows.readings[::7, 0], rows.readings[3::11, 2], rows.readings[5, 4] = 3e38, -1e30, 31.91
    rows.positions[:] = 9
    activity = read(bank, rows)
    assert activity.sound.all()
    live = LiveSketch(bank, "a", 60)
    live.add(activity)
    assert told(live.close(7)) == plainly(bank, activity)


def test_means_far_from_zero_clip_nothing():
    """All squares together are as large as one that is clipped: which of the two it is must be looked up."""
    bank = two()
    rows = step(np.random.default_rng(4), 200)
    rows.readings[:] += 25
    activity = read(bank, rows)
    live = LiveSketch(bank, "a", 60)
    live.add(activity)
    assert told(live.close(7)) == plainly(bank, activity)


def any_of(one: dict[str, list[int]], activity: Activity) -> bool:
    return bool(one["rows"] or one["non_finite"]) or activity.sinks.any()


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 150), min_size=1, max_size=5))
def test_how_rows_are_cut_into_steps_changes_no_bit(seed, sizes):
    bank, rng = two(), np.random.default_rng(seed)
    whole = step(rng, sum(sizes))
    whole.readings[rng.random(whole.readings.shape) < 0.01] = np.inf
    together, apart = LiveSketch(bank, "a", 60), LiveSketch(bank, "a", 60)
    together.add(read(bank, whole))
    for start, end in zip(np.cumsum([0, *sizes]), np.cumsum(sizes), strict=False):
        cut = slice(int(start), int(end))
        part = type(whole)(
            whole.readings[cut], whole.positions[cut], whole.slices[cut], whole.sessions[cut], whole.session_ids
        )
        apart.add(read(bank, part))
    assert together.close(1) == apart.close(1)


def test_a_closed_tick_is_gone_and_the_next_begins_empty():
    bank = two()
    live = LiveSketch(bank, "a", 60)
    live.add(read(bank, step(np.random.default_rng(0), 100)))
    assert len(live.close(5)) == 6
    assert live.close(6) == ()


def test_a_tick_closed_twice_or_backwards_is_refused_and_counted_and_loses_nothing():
    bank = two()
    live, other = LiveSketch(bank, "a", 60), LiveSketch(bank, "a", 60)
    rng = np.random.default_rng(0)
    first, second = (read(bank, step(rng, 100)) for _ in range(2))
    live.add(first)
    live.close(5)
    live.add(second)
    assert live.close(5) == live.close(4) == ()
    assert live.ticks_refused == 2
    other.add(second)
    assert live.close(6) == other.close(6)


def test_memory_is_bounded_stated_and_below_two_kilobytes_a_circuit_slice():
    bank = Bank(tuple(circuit(f"c{at}", 8 * at, nodes=8) for at in range(32)), tuple("abcdefg"))
    live = LiveSketch(bank, "a", 60)
    before = live.nbytes
    assert before <= 2048 * 32 * 8
    for seed in range(3):
        live.add(read(bank, step(np.random.default_rng(seed), 300, slices=8, columns=256)))
    assert live.nbytes == before
    assert all(row.counts.nbytes <= 2048 for row in live.close(0))


def test_a_flood_of_equal_rows_is_counted_exactly():
    """The largest sums that a block of 64 rows can have: float32 would lose the squares."""
    bank = Bank((circuit(nodes=1),))
    live = LiveSketch(bank, "a", 60)
    rows = step(np.random.default_rng(0), 64_000, slices=1, columns=1)
    rows.readings[:] = 31.89
    rows.positions[:] = 9
    live.add(read(bank, rows))
    (row,) = live.close(0)
    fixed = int(np.rint(np.float32(31.89) * 256))
    assert row.part("sums").tolist() == [64_000 * fixed]
    assert row.part("squares").tolist() == [64_000 * fixed**2]
    mean, deviation = row.moments
    assert mean[0] == pytest.approx(31.89, abs=1 / 256)
    assert deviation[0] == pytest.approx(0.0, abs=1e-6)
