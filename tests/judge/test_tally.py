from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.judge.buckets import Edges, Grid, TallyArrays
from sidecar.judge.tally import SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES, Tally, TallyBank
from sidecar.snapshot import Exemplar, Histogram

ALL = (SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES)
TRACE, SPAN = "ab" * 16, "cd" * 8


def by_definition(edges: Edges, values: np.ndarray, weights: np.ndarray) -> tuple[list[int], int, list[int]]:
    """Classic counts, the count of zeros and native counts, each by its own definition."""
    classic = np.zeros(len(edges.classic) + 1, np.int64)
    np.add.at(classic, np.searchsorted(edges.classic, values, side="left"), weights)
    bounds = 2.0 ** (np.arange(edges.smallest * 8, edges.largest * 8 + 1) / 8)
    native = np.zeros(len(bounds) + 1, np.int64)
    np.add.at(native, np.searchsorted(bounds, values, side="left"), weights)
    return classic.tolist(), int(native[0]), native[1:].tolist()


def shown(histogram: Histogram) -> tuple[list[int], int, list[int]]:
    assert histogram.native is not None
    return histogram.counts.tolist(), histogram.native.zero_count, histogram.native.counts.tolist()


def show_there(edges: Edges, arrays: TallyArrays) -> list[Histogram]:
    return list(edges.histograms(arrays))


def same(one: Histogram, other: Histogram) -> bool:
    rest = [(h.edges, h.total, h.exemplars, h.native and (h.native.schema, h.native.first)) for h in (one, other)]
    return shown(one) == shown(other) and rest[0] == rest[1]


@pytest.mark.parametrize("edges", ALL)
@given(
    values=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 200, width=64), st.integers(1, 9)), max_size=40),
)
def test_an_observation_is_counted_once_and_seen_by_both_kinds_of_buckets(
    edges: Edges, values: list[tuple[int, float, int]]
) -> None:
    which, numbers, weights = (
        (np.array(column) for column in zip(*values, strict=True)) if values else [np.zeros(0)] * 3
    )
    bank = TallyBank(edges, 3)
    bank.add(which.astype(np.intp), numbers, weights.astype(np.int64))
    assert bank.arrays().counts.sum() == weights.sum()
    for row in range(3):
        mine = which == row
        histogram = bank.snapshot(row)
        assert shown(histogram) == by_definition(edges, numbers[mine], weights[mine].astype(np.int64))
        assert histogram.total == pytest.approx((numbers[mine] * weights[mine]).sum())


@pytest.mark.parametrize("edges", ALL)
def test_values_on_and_beside_every_edge_are_in_the_bins_of_a_plain_search(edges: Edges) -> None:
    fine = edges.fine
    values = np.concatenate([
        fine, np.nextafter(fine, 0), np.nextafter(fine, 9), [0.0, -0.0, 5e-324, -1.0, -1e300, 1e300, fine[0] / 3]
    ])  # fmt: skip
    assert edges.grid.find(values).tolist() == np.searchsorted(fine, values, side="left").tolist()


def test_a_native_bucket_has_the_bounds_that_prometheus_gives_it() -> None:
    bank = TallyBank(SCORE_EDGES, 1)
    bank.add(np.zeros(1, np.intp), np.array([0.75]))
    native = bank.snapshot(0).native
    assert native is not None
    index = native.first + int(np.flatnonzero(native.counts)[0])
    assert 2 ** ((index - 1) / 2**native.schema) < 0.75 <= 2 ** (index / 2**native.schema)
    assert native.zero_threshold == 2.0**-10


def test_the_float_32_of_a_reading_and_a_weight_for_all_are_taken() -> None:
    bank = TallyBank(SCORE_EDGES, 2)
    bank.add(np.array([1, 1]), np.array([0.25, 0.5], np.float32)[::-1], weight=3)
    assert bank.snapshot(1).counts.sum() == 6
    assert bank.snapshot(1).total == 2.25
    assert bank.snapshot(0).counts.sum() == 0


def test_one_value_at_a_time_is_counted_like_many_at_once() -> None:
    values = np.random.default_rng(3).gamma(0.5, 0.02, 500)
    weights = np.random.default_rng(4).integers(1, 5, 500)
    bank, tally = TallyBank(SECONDS_EDGES, 1), Tally(SECONDS_EDGES)
    bank.add(np.zeros(500, np.intp), values, weights)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        tally.add(value, weight)
    assert shown(tally.snapshot()) == shown(bank.snapshot(0))
    assert tally.snapshot().total == pytest.approx(bank.snapshot(0).total)
    assert tally.arrays().counts.tolist() == bank.arrays().counts.tolist()


def test_the_newest_exemplar_of_each_classic_bucket_is_kept() -> None:
    bank = TallyBank(SCORE_EDGES, 2)
    for value, at_s in ((0.91, 1.0), (0.94, 2.0), (0.1, 3.0)):
        bank.show(1, Exemplar(value, TRACE, SPAN, at_s))
    found = dict(zip(SCORE_EDGES.classic, bank.snapshot(1).exemplars, strict=False))
    assert {edge: one for edge, one in found.items() if one} == {
        0.95: Exemplar(0.94, TRACE, SPAN, 2.0),
        0.1: Exemplar(0.1, TRACE, SPAN, 3.0),
    }
    assert bank.snapshot(0).exemplars == ()


def test_another_process_shows_what_the_copied_arrays_hold() -> None:
    bank = TallyBank(SCORE_EDGES, 3)
    bank.add(np.array([0, 2, 2]), np.array([0.3, 0.9, 0.0001]))
    bank.show(2, Exemplar(0.9, TRACE, SPAN, 1_700_000_000.25))
    for array in bank.arrays():
        assert array.flags.c_contiguous
        assert not array.dtype.hasobject
    copied = bank.arrays().copy()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply_async(show_there, (SCORE_EDGES, copied)).get(60)
    assert [same(bank.snapshot(row), there[row]) for row in range(3)] == [True] * 3
    bank.add(np.array([2]), np.array([0.5]))
    assert copied.counts.sum() == 3


def test_counting_goes_on_where_another_bank_stopped() -> None:
    before, after = TallyBank(SCORE_EDGES, 2), TallyBank(SCORE_EDGES, 3)
    before.add(np.array([1, 1]), np.array([0.2, 0.99]))
    before.show(1, Exemplar(0.99, TRACE, SPAN, 5.0))
    after.take(0, before, 1)
    assert same(after.snapshot(0), before.snapshot(1))
    after.add(np.array([0]), np.array([0.2]))
    assert before.snapshot(1).counts.sum() == 2


@pytest.mark.parametrize(
    ("classic", "smallest", "largest"), [((2.0, 1.0), -1, 1), ((0.0, 1.0), -1, 1), ((), -1, 1), ((1.0,), 2, 2)]
)
def test_edges_that_make_no_sense_are_refused(classic: tuple[float, ...], smallest: int, largest: int) -> None:
    with pytest.raises(ValueError, match="edge"):
        Edges(classic, smallest, largest)


def test_edges_that_no_cell_can_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too close"):
        Grid(np.array([1.0, np.nextafter(1.0, 2.0)]))
