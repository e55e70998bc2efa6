"""Streaming equals batch: whatever way rows arrive, the running score is its definition over all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.manifest import Aggregation, AggregationKind
from sidecar.judge.aggregate import Aggregates, Grouped
from sidecar.reading.plan import Signal
from tests.builders import make_signal
from tests.definitions import by_definition

COLUMNS = {AggregationKind.ATTENTION: 2, AggregationKind.MAX_ROLLING_ATTENTION: 2, AggregationKind.MULTIMAX: 3}


def made(kind: AggregationKind, window: int) -> Signal:
    fields = {"aggregation": kind, "window": window, "agree": (window + 1) // 2, "columns": COLUMNS.get(kind, 1)}
    return make_signal(f"{kind.value}_{window}", **fields)


def wanted(signal: Signal, readings: np.ndarray) -> float:
    heads = signal.columns if signal.aggregation is AggregationKind.MULTIMAX else 1
    return by_definition(
        Aggregation(kind=signal.aggregation, window=signal.window, agree=signal.agree, heads=heads), readings
    )


SIGNALS = [made(kind, window) for window in (1, 3, 10) for kind in AggregationKind]
WIDTHS = [signal.columns for signal in SIGNALS]
WIDTH = sum(WIDTHS)
CELLS = [slice(int(stop) - width, int(stop)) for stop, width in zip(np.cumsum(WIDTHS), WIDTHS, strict=True)]
ANY = st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=4), min_size=1, max_size=12)
DECODE = st.lists(
    st.lists(st.just(1), min_size=1, max_size=4), min_size=1, max_size=40
)  # one row each: a way of its own


@given(ANY | DECODE, st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_any_split_into_steps_and_requests_gives_the_definition(steps, seed, hidden):
    rng = np.random.default_rng(seed)
    aggregates = Aggregates(SIGNALS, slots=4)
    history: dict[tuple[int, int], list[np.ndarray]] = {}
    for lengths in steps:
        slots = rng.permutation(4)[: len(lengths)]
        total = sum(lengths)
        values = rng.normal(size=(total, WIDTH)).astype(np.float32)
        valid = rng.random((total, len(SIGNALS))) >= hidden
        cells = np.repeat(valid, WIDTHS, axis=1)
        starts = np.cumsum([0, *lengths[:-1]])
        aggregates.update(Grouped(np.where(cells, values, 0), valid, starts.astype(np.intp), slots.astype(np.intp)))
        for slot, start, length in zip(slots, starts, lengths, strict=True):
            for column in range(len(SIGNALS)):
                rows = slice(start, start + length)
                history.setdefault((slot, column), []).extend(values[rows, CELLS[column]][valid[rows, column]])
    for (slot, column), readings in history.items():
        assert int(aggregates.state_of(np.array([slot]))[1][0, column]) == len(readings)
        if readings:
            signal = SIGNALS[column]
            want = wanted(signal, np.array(readings))
            assert aggregates.state_of(np.array([slot]))[0][0, column] == pytest.approx(want, abs=1e-5), signal.name


def test_ten_thousand_decode_steps_do_not_let_rounding_grow():
    aggregates = Aggregates(SIGNALS, slots=1)
    rng = np.random.default_rng(3)
    line = (rng.normal(size=10_000) * 100).astype(np.float32)
    every = np.ones((1, len(SIGNALS)), dtype=np.bool_)
    for value in line:
        row = np.full((1, WIDTH), value, dtype=np.float32)
        aggregates.update(Grouped(row, every, np.zeros(1, np.intp), np.zeros(1, np.intp)))
    for column, signal in enumerate(SIGNALS):
        want = wanted(signal, np.repeat(line[:, None], signal.columns, axis=1))
        assert aggregates.state_of(np.zeros(1, np.intp))[0][0, column] == pytest.approx(want, rel=1e-6, abs=1e-6), (
            signal.name
        )


def test_a_slot_that_was_reset_knows_nothing_of_its_last_request():
    aggregates, fresh = Aggregates(SIGNALS, slots=2), Aggregates(SIGNALS, slots=2)
    rng = np.random.default_rng(0)
    every = np.ones((7, len(SIGNALS)), dtype=np.bool_)
    zero = np.zeros(1, np.intp)
    aggregates.update(Grouped(rng.normal(size=(7, WIDTH)).astype(np.float32), every, zero, zero))
    aggregates.reset(0)
    rows = Grouped(rng.normal(size=(7, WIDTH)).astype(np.float32), every, zero, zero)
    aggregates.update(rows)
    fresh.update(rows)
    np.testing.assert_array_equal(aggregates.state_of(np.arange(2))[0], fresh.state_of(np.arange(2))[0])


def test_signals_that_a_reload_kept_go_on_where_they_were():
    before, whole = Aggregates(SIGNALS, slots=1), Aggregates(SIGNALS, slots=1)
    rng = np.random.default_rng(1)
    zero = np.zeros(1, np.intp)
    first, second = (rng.normal(size=(9, WIDTH)).astype(np.float32) for _ in range(2))
    every = np.ones((9, len(SIGNALS)), dtype=np.bool_)
    before.update(Grouped(first, every, zero, zero))
    order = rng.permutation(len(SIGNALS))
    after = Aggregates([SIGNALS[i] for i in order], slots=1)
    after.move(before, [(int(old), new) for new, old in enumerate(order)], [0])
    moved = np.concatenate([second[:, CELLS[i]] for i in order], axis=1)
    after.update(Grouped(moved, every, zero, zero))
    whole.update(Grouped(first, every, zero, zero))
    whole.update(Grouped(second, every, zero, zero))
    np.testing.assert_allclose(after.state_of(zero)[0], whole.state_of(zero)[0][:, order], rtol=1e-12)
