"""From a step to its readings: what is read, what is refused, what is left out, and that all of it is told."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import Rejected, RejectReason
from sidecar.reading.calibration import narrow
from sidecar.reading.kernels import Kernels
from sidecar.reading.plan import Control, Plan
from sidecar.reading.read import Readings, read
from sidecar.reading.shed import FULL, Shed
from sidecar.types import ElementType, Phase, StepBatch, TapPoint
from tests.reading.plans import batch_of, model_of, plan_of, sample_of, tap_plan, tensor_of

A, B, ELSEWHERE = TapPoint(1), TapPoint(2), TapPoint(3)
WIDTH = 24
RNG = np.random.default_rng(0)
DIRECTIONS = {A: RNG.normal(size=(WIDTH, 4)).astype(np.float32), B: RNG.normal(size=(WIDTH, 3)).astype(np.float32)}
STATES = RNG.normal(size=(12, WIDTH)).astype(np.float32)


def made(**changes) -> Plan:
    taps = [tap_plan(A, DIRECTIONS[A]), tap_plan(B, DIRECTIONS[B], first=3)]
    return plan_of(taps, model_of(WIDTH), **changes)


def reading(plan: Plan, batch: StepBatch, shed: Shed = FULL) -> Readings:
    kernels = Kernels(0.02, products=["numpy_f32"])
    kernels.bind(plan)
    return read(plan, batch, kernels, shed)


def projection(where: TapPoint, rows: np.ndarray = STATES) -> np.ndarray:
    return np.column_stack([rows @ DIRECTIONS[where], np.square(rows).sum(axis=1)])


def close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_every_signal_reads_every_row_of_its_tap_point_and_no_other():
    other = RNG.normal(size=STATES.shape).astype(np.float32)
    got = reading(made(), batch_of(tensor_of(B, other), tensor_of(A, STATES)))
    close(got.values, np.hstack([STATES @ DIRECTIONS[A][:, :3], other @ DIRECTIONS[B][:, :2]]))
    assert got.valid.all()
    assert (got.rows_scored, got.rows_shed, got.rows_without_plan, got.generation) == (24, 0, 0, 1)
    assert got.weight.tolist() == [1] * 5
    assert [(tap.tap_point, tap.rows, tap.control_rows) for tap in got.taps] == [(B, 12, 12), (A, 12, 12)]


def test_a_tap_point_that_sent_nothing_has_no_valid_reading():
    got = reading(made(), batch_of(tensor_of(B, STATES)))
    assert not got.valid[:, :3].any()
    assert not got.values[:, :3].any()
    assert got.valid[:, 3:].all()


def test_the_control_is_counted_from_its_own_first_position_on_and_within_its_own_range():
    values = STATES @ DIRECTIONS[A][:, 3]
    low, high = np.quantile(values, [0.25, 0.75])
    taps = [tap_plan(A, DIRECTIONS[A], control=Control(3, float(low), float(high), 2))]
    got = reading(plan_of(taps, model_of(WIDTH)), batch_of(tensor_of(A, STATES), rows=(12,)))
    (tap,) = got.taps
    assert (tap.control_rows, tap.control_in_range) == (10, np.count_nonzero((values >= low) & (values <= high)) - (
        np.count_nonzero((values[:2] >= low) & (values[:2] <= high))))  # fmt: skip


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE])
def test_positions_that_a_signal_skips_are_not_valid(phase):
    got = reading(made(skip=2), batch_of(tensor_of(A, STATES), rows=(5, 7), phase=phase))
    assert got.valid[:, 0].tolist() == [False] * 2 + [True] * 3 + [False] * 2 + [True] * 5
    assert not got.values[~got.valid].any()


# what is refused


@pytest.mark.parametrize("dtype", list(ElementType))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [A, ELSEWHERE])
def test_a_row_with_a_value_that_is_no_number_is_refused_whether_it_is_read_or_not(dtype, bad, where):
    rows = STATES.copy()
    rows[7, 5] = bad
    with pytest.raises(Rejected) as refused:
        reading(made(), batch_of(tensor_of(B, STATES, dtype), tensor_of(where, rows, dtype)))
    assert (refused.value.reason, refused.value.field) == (RejectReason.NON_FINITE, "step_batch.tensors[1].raw")


@pytest.mark.parametrize("column", range(5))
def test_a_projection_with_a_value_that_is_no_number_is_refused(column):
    rows = projection(A)
    rows[3, column] = np.nan
    with pytest.raises(Rejected) as refused:
        reading(made(), batch_of(tensor_of(A, rows, projected=True)))
    assert (refused.value.reason, refused.value.field) == (RejectReason.NON_FINITE, "step_batch.tensors[0].projected")


def test_a_finite_row_that_overflows_is_left_out_alone():
    rows = STATES.copy()
    rows[4] = 3e38
    got = reading(made(), batch_of(tensor_of(A, rows)))
    assert np.flatnonzero(~got.valid[:, 0]).tolist() == [4]
    assert np.isfinite(got.values).all()
    (tap,) = got.taps
    assert (tap.non_finite_rows, tap.control_rows, got.rows_scored) == (1, 11, 11)


def test_large_readings_are_read():
    """The sum of their squares overflows, which is how others are looked for."""
    long = tap_plan(A, DIRECTIONS[A] * np.float32(1e30))
    got = reading(plan_of([long], model_of(WIDTH)), batch_of(tensor_of(A, STATES)))
    assert got.valid.all()
    np.testing.assert_allclose(got.values, (STATES @ DIRECTIONS[A][:, :3]) * np.float32(1e30), rtol=1e-3)


def test_a_row_whose_own_norm_overflows_is_left_out_before_it_spoils_a_mean():
    rows = STATES.copy()
    rows[4] *= 1e21
    got = reading(made(), batch_of(tensor_of(A, rows)))
    assert np.flatnonzero(~got.valid[:, 0]).tolist() == [4]
    assert (got.taps[0].non_finite_rows, got.rows_scored) == (1, 11)


@pytest.mark.parametrize(
    ("tensor", "generation", "reason", "field"),
    [
        (tensor_of(A, STATES[:, 1:]), 1, RejectReason.BAD_SHAPE, "step_batch.tensors[0].columns"),
        (tensor_of(ELSEWHERE, STATES[:, 1:]), 1, RejectReason.BAD_SHAPE, "step_batch.tensors[0].columns"),
        (tensor_of(A, projection(B), projected=True), 1, RejectReason.BAD_SHAPE, "step_batch.tensors[0].columns"),
        (tensor_of(TapPoint(8), STATES), 1, RejectReason.UNKNOWN_TAP_POINT, "step_batch.tensors[0].tap_point.layer"),
        (tensor_of(A, STATES), 2, RejectReason.UNKNOWN_GENERATION, "step_batch.plan_generation"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused_with_its_path(tensor, generation, reason, field):
    with pytest.raises(Rejected) as refused:
        reading(made(), batch_of(tensor, generation=generation))
    assert (refused.value.reason, refused.value.field) == (reason, field)


# what is shed


def test_every_reading_that_is_shed_is_counted_and_every_other_one_is_what_it_was():
    plan, batch = made(), batch_of(tensor_of(A, STATES), tensor_of(B, STATES), rows=(12,))
    full, thin = reading(plan, batch), reading(plan, batch, Shed(stride=4))
    kept = Shed(stride=4).keeps(batch.segments.positions)
    assert kept is not None
    assert 0 < kept.sum() < 12
    assert (thin.valid.all(axis=1) == kept).all()
    close(thin.values[kept], full.values[kept])
    assert not thin.values[~kept].any()
    assert [tap.rows for tap in thin.taps] == [12, 12]  # arrived: coverage counts them
    assert (thin.rows_scored, thin.rows_shed) == (2 * kept.sum(), 2 * (12 - kept.sum()))
    assert [tap.control_rows for tap in thin.taps] == [kept.sum()] * 2
    assert thin.weight.tolist() == [4] * 5


def test_a_tap_point_that_is_shed_is_not_read_at_all():
    plan, batch = made(), batch_of(tensor_of(A, STATES), tensor_of(B, STATES))
    got = reading(plan, batch, Shed(tap_points=frozenset({A})))
    assert not got.valid[:, :3].any()
    assert got.valid[:, 3:].all()
    assert (got.rows_scored, got.rows_shed, got.taps[0].rows, got.taps[0].control_rows) == (12, 12, 12, 0)


def test_a_tap_point_with_a_verdict_is_always_read_in_full():
    plan = made(verdict_taps=frozenset({A}))
    batch = batch_of(tensor_of(A, STATES), tensor_of(B, STATES))
    got = reading(plan, batch, Shed(4, frozenset({A, B})))
    assert got.valid[:, :3].all()
    assert not got.valid[:, 3:].any()
    assert got.weight.tolist() == [1, 1, 1, 4, 4]
    assert got.rows_shed == 12


def test_a_projection_is_thinned_like_raw_rows():
    plan = made()
    raw = reading(plan, batch_of(tensor_of(A, STATES), rows=(12,)), Shed(2))
    tap = reading(plan, batch_of(tensor_of(A, projection(A), projected=True), rows=(12,)), Shed(2))
    np.testing.assert_array_equal(raw.valid, tap.valid)
    close(raw.values, tap.values)


def test_a_step_in_which_no_token_is_kept_reads_nothing_and_says_so():
    batch = batch_of(tensor_of(A, STATES), first=1)  # position 1, of everyone
    got = reading(made(), batch, Shed(4))
    assert (got.rows_scored, got.rows_shed) == (0, 12)


@given(st.sampled_from([2, 3, 4, 8, 16]), st.sampled_from([1, 2, 3, 4, 8]), st.integers(0, 10_000))
@settings(deadline=None)
def test_one_token_in_stride_is_kept_whatever_stride_the_tap_had(stride, taken, first):
    positions = (np.arange(first, first + 20_000) * taken).astype(np.uint32)
    kept = Shed(stride).keeps(positions)
    assert kept is not None
    assert kept.mean() == pytest.approx(1 / stride, rel=0.02)
    assert np.diff(np.flatnonzero(kept)).max() <= 13 * stride  # nobody goes unread for long


# what a tap multiplied


def test_a_projection_reads_as_the_rows_do():
    offsets = np.array([1, -2, 3, 0], np.float32)
    plan = plan_of([tap_plan(A, DIRECTIONS[A], offsets=offsets)], model_of(WIDTH))
    raw = reading(plan, batch_of(tensor_of(A, STATES)))
    tap = reading(plan, batch_of(tensor_of(A, projection(A), projected=True)))
    close(tap.values, raw.values)
    np.testing.assert_array_equal(tap.valid, raw.valid)


@pytest.mark.parametrize("dtype", list(ElementType))
def test_a_right_projection_stands_up_to_its_sample(dtype):
    """Also one that was rounded to 8 bits on its way: directions in bfloat16, readings in bfloat16."""
    from sidecar.reading.products import to_float32

    def rounded(x: np.ndarray) -> np.ndarray:
        return to_float32(narrow(np.ascontiguousarray(x, np.float32), ElementType.BF16), ElementType.BF16)

    states = to_float32(tensor_of(A, STATES, dtype).values, dtype)
    claimed = np.column_stack([rounded(states @ rounded(DIRECTIONS[A])), rounded(np.square(states).sum(axis=1))])
    got = reading(made(), batch_of(tensor_of(A, claimed, projected=True, sample=sample_of([0, 5, 11], states, dtype))))
    assert [(tap.checked_rows, tap.wrong_rows) for tap in got.taps] == [(3, 0)]


@pytest.mark.parametrize("fault", ["another row", "another plan", "zeros", "norm", "one column"])
def test_a_wrong_projection_does_not(fault):
    claimed = projection(A)
    if fault == "another row":
        claimed = np.roll(claimed, 1, axis=0)
    elif fault == "another plan":
        claimed[:, :4] = STATES @ np.roll(DIRECTIONS[A], 1, axis=0)
    elif fault == "zeros":
        claimed[:] = 0
    elif fault == "norm":
        claimed[:, 4] *= 1.02
    else:
        claimed[:, 2] += 0.1 * np.linalg.norm(STATES, axis=1) * np.linalg.norm(DIRECTIONS[A][:, 2])
    got = reading(made(), batch_of(tensor_of(A, claimed, projected=True, sample=sample_of([1, 2], STATES))))
    assert [(tap.checked_rows, tap.wrong_rows) for tap in got.taps] == [(2, 2)]


def test_a_wrong_row_is_told_from_right_ones():
    claimed = projection(A)
    claimed[5] += 1.0 + np.abs(claimed[5])
    got = reading(made(), batch_of(tensor_of(A, claimed, projected=True, sample=sample_of([4, 5, 6], STATES))))
    assert [(tap.checked_rows, tap.wrong_rows) for tap in got.taps] == [(3, 1)]


@pytest.mark.parametrize(("width", "bad", "field"), [(-1, 1.0, "sample.columns"), (WIDTH, np.nan, "sample")])
def test_a_sample_that_is_no_sample_is_refused(width, bad, field):
    states = STATES.copy()
    states[1, 0] = bad
    sample = sample_of([1], states[:, :width])
    with pytest.raises(Rejected) as refused:
        reading(made(), batch_of(tensor_of(A, projection(A), projected=True, sample=sample)))
    assert refused.value.field == f"step_batch.tensors[0].{field}"


def test_a_plan_can_be_sent_to_another_process():
    plan = made(verdict_taps=frozenset({A}), earlier={0: {A: (("a", 0),)}})
    again = pickle.loads(pickle.dumps(plan))
    assert again.taps.keys() == plan.taps.keys()
    assert (again.verdict_taps, again.earlier, again.signals) == (plan.verdict_taps, plan.earlier, plan.signals)
    np.testing.assert_array_equal(again.taps[A].directions, plan.taps[A].directions)
