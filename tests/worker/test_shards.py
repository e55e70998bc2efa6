"""Shards read what one process would have read: the same bits, the same counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar import published
from sidecar.clock import ManualClock
from sidecar.errors import DropReason, Rejected, RejectReason
from sidecar.reading.kernels import Kernels
from sidecar.reading.read import read
from sidecar.reading.shed import Shed
from sidecar.snapshot import ShardOutcome
from sidecar.types import ElementType, StepBatch, TapPoint
from sidecar.worker.shards import Shards, deal
from tests.reading.plans import batch_of, model_of, plan_of, tap_plan, tensor_of
from tests.worker.sharded import (
    TAPS,
    UNREAD,
    WIDTH,
    Sharded,
    make_batch,
    make_plan,
    named,
)

pytestmark = pytest.mark.process


# the same as without


@st.composite
def batches(draw: st.DrawFn, dtype: ElementType) -> StepBatch:
    """Several requests at some of the tap points; now and then a row that overflows, a NaN, or a tap point without a plan."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    taps = draw(st.lists(st.sampled_from((*TAPS, UNREAD)), min_size=1, max_size=7, unique=True))
    tensors = []
    for _ in taps:
        rows = rng.normal(size=(sum(lengths), WIDTH)).astype(np.float32)
        if draw(st.integers(0, 9)) == 0:
            rows[rng.integers(len(rows))] = 3e38
        tensors.append(rows)
    if draw(st.integers(0, 9)) == 0:
        tensors[rng.integers(len(taps))][0, 3] = np.nan
    made = batch_of(
        *(tensor_of(where, rows, dtype) for where, rows in zip(taps, tensors, strict=True)),
        rows=lengths,
        first=draw(st.integers(0, 50)),
    )
    return named(made, plan_generation=0, verdict_within_s=draw(st.sampled_from((0.0, 1.0))))


@pytest.mark.parametrize("product", ["numpy_f32", "torch_f32", "torch_bf16x2"])
def test_results_ledger_and_published_counts_are_those_of_one_process_to_the_bit(shards: Shards, product: str) -> None:
    plan = make_plan()
    alone, joined = Sharded(ManualClock(), product=product), Sharded(ManualClock(), shards, product)
    for hot in (alone, joined):
        hot.bind(plan)
    before = dict(shards.counts().tensors)

    def same(batch: StepBatch) -> None:
        assert alone.submit(batch) == joined.submit(batch)
        assert alone.rows() == joined.rows()
        told, expected = published.facts(joined.pipeline), published.facts(alone.pipeline)
        for facts in (told, expected):
            facts["run"].pop("shards")
            facts["run"].pop("kernels")  # they show times
        assert told == expected
        for ours, theirs in zip(published.arrays(joined.pipeline), published.arrays(alone.pipeline), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    with np.printoptions(threshold=8):  # a batch that is told is told shortly
        settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])(
            given(batches(ElementType.BF16))(same)
        )()
    for seed in range(20):
        same(make_batch(seed=seed))  # every tap point, so that shards have something to read whatever was drawn
    after = shards.counts().tensors
    assert after[ShardOutcome.SHARD] > before[ShardOutcome.SHARD] + 40
    assert after[ShardOutcome.SHARD_LATE] == 0
    assert {"scored", DropReason.NO_PLAN, DropReason.SCORE_NON_FINITE} <= joined.rows().keys()


def test_readings_are_joined_by_request_position_and_signal(shards: Shards) -> None:
    plan, kernels = make_plan(), Kernels(0.01, ["numpy_f32"])
    kernels.bind(plan)
    shards.bind(plan, kernels)
    shards.begin(1.0)
    batch = make_batch(tokens=5)
    readings = read(plan, batch, kernels, others=shards)
    rng = np.random.default_rng(0)
    for where in TAPS:
        tap = plan.taps[where]
        expected = rng.integers(-3, 4, (5, WIDTH)) @ tap.directions
        np.testing.assert_array_equal(readings.values[:, tap.signals], expected[:, :-1])
    assert [one.tap_point for one in readings.taps] == list(TAPS)
    assert readings.valid.all()
    assert not readings.late.any()


def test_a_nan_in_a_shards_rows_is_the_senders_fault_and_the_next_batch_is_read(shards: Shards) -> None:
    hot, plan = Sharded(ManualClock(), shards), make_plan()
    hot.bind(plan)
    elsewhere = next(where for share in deal(plan, 3)[1:] for where in share)
    rows = {where: np.zeros((2, WIDTH)) for where in TAPS}
    rows[elsewhere][1, 5] = np.nan
    tensors = [tensor_of(where, rows[where], ElementType.BF16) for where in TAPS]
    refused = hot.submit(named(batch_of(*tensors), plan_generation=0))
    assert (refused.reason, refused.field) == (
        RejectReason.NON_FINITE,
        f"step_batch.tensors[{TAPS.index(elsewhere)}].raw",
    )
    assert hot.submit(make_batch()).scored
    assert hot.rows() == {RejectReason.NON_FINITE: 12, "scored": 18}


# one generation


def test_every_batch_is_read_by_one_generation_whatever_a_refused_one_left_in_the_rings(shards: Shards) -> None:
    kernels = Kernels(0.01, ["numpy_f32"])
    bad = make_batch()
    own = deal(make_plan(), 3)[0][0]
    broken = [replace(one, values=one.values[:, :-1]) if one.tap_point == own else one for one in bad.tensors]
    for scale in (1.0, 2.0, -3.0, 0.5):
        plan = make_plan(scale=scale)
        kernels.bind(plan)
        shards.bind(plan, kernels)
        for seed in range(3):
            batch = make_batch(seed=seed)
            shards.begin(1.0)
            values = read(plan, batch, kernels, others=shards).values
            rng = np.random.default_rng(seed)
            rows = [rng.integers(-3, 4, (3, WIDTH)) for _ in TAPS]
            exact = [row @ tap.directions[:, :-1] for row, tap in zip(rows, plan.taps.values(), strict=True)]
            np.testing.assert_array_equal(values, np.concatenate(exact, axis=1))
        shards.begin(1.0)
        with pytest.raises(Rejected):  # its rows are with the shards, and nobody asks for the answers
            read(plan, replace(bad, tensors=tuple(broken)), kernels, others=shards)


def test_a_shard_reads_with_the_worker_s_kernels(shards: Shards) -> None:
    """Else a request's score would depend on who read its rows."""
    plan, ours, theirs = make_plan(), Kernels(0.05), Kernels(0.0)
    ours.bind(plan)
    theirs.bind_like(plan, ours.choices())
    assert theirs.choices() == ours.choices()


# who reads what


@given(st.lists(st.integers(2, 64), min_size=1, max_size=24), st.integers(1, 6), st.sets(st.integers(0, 23)))
def test_every_tap_point_is_dealt_once_and_evenly_and_the_worker_keeps_verdicts(
    columns: list[int], readers: int, verdicts: set[int]
) -> None:
    taps = [tap_plan(TapPoint(i), np.ones((4, k))) for i, k in enumerate(columns)]
    plan = plan_of(taps, model_of(4), verdict_taps=frozenset(TapPoint(i) for i in verdicts if i < len(columns)))
    shares = deal(plan, readers)
    assert sorted(where for share in shares for where in share) == sorted(plan.taps)
    assert all(shares)
    loads = [sum(plan.taps[where].directions.size for where in share) for share in shares]
    assert max(loads) - min(loads) <= 4 * max(columns)
    kept = [len(plan.verdict_taps.intersection(share)) for share in shares]
    assert kept[0] == max(kept)


def test_a_single_tap_point_stays_with_the_worker(shards: Shards) -> None:
    hot = Sharded(ManualClock(), shards)
    hot.bind(make_plan(taps=TAPS[:1]))
    before = dict(shards.counts().tensors)
    assert hot.submit(make_batch(TAPS[:1])).scored
    assert shards.counts().tensors == before


def test_only_what_is_to_be_read_is_sent(shards: Shards) -> None:
    plan, kernels = make_plan(), Kernels(0.01, ["numpy_f32"])
    kernels.bind(plan)
    shards.bind(plan, kernels)
    sent: list[tuple[TapPoint, int]] = []

    class Witness(Shards):
        def __init__(self) -> None: ...

        def ask(self, tap_plan: Any, values: Any, dtype: ElementType) -> Any:
            sent.append((tap_plan.tap_point, len(values)))
            return shards.ask(tap_plan, values, dtype)

    shards.begin(1.0)
    batch, shed = make_batch(tokens=24), Shed(4, frozenset(TAPS[:2]))
    kept = shed.keeps(batch.segments.positions)
    assert kept is not None
    readings = read(plan, batch, kernels, shed, Witness())
    expected = read(plan, batch, kernels, shed)
    assert sent == [(where, int(kept.sum())) for where in TAPS[2:]]
    np.testing.assert_array_equal(readings.values, expected.values)
    assert readings.taps == expected.taps


def test_rows_that_do_not_fit_a_slot_are_read_by_the_worker(shards: Shards) -> None:
    hot = Sharded(ManualClock(), shards, limits={"rows": 1 << 18})
    plan = make_plan()
    hot.bind(plan)
    elsewhere = deal(plan, 3)[1][0]
    tokens = (16 << 20) // (2 * WIDTH)  # as many bytes as a slot has, and 64 are the header's
    batch = batch_of(tensor_of(elsewhere, np.zeros((tokens, WIDTH)), ElementType.BF16), rows=(tokens,))
    before = shards.counts().tensors[ShardOutcome.WORKER]
    assert hot.submit(named(batch, plan_generation=0)).scored
    assert shards.counts().tensors[ShardOutcome.WORKER] == before + 1
    assert hot.rows() == {"scored": tokens}
