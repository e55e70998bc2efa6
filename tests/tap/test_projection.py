"""Projected mode without a sidecar: what leaves the engine, and that it is what the sidecar would have computed itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.step import Sample
from sidecar.tap.tensors.projection import Product, sample_rows
from sidecar.tap.tensors.states import TorchStates
from sidecar.types import Mode, TapPoint, UnseenReason
from tests.tap.engine import PROMPTS, left_padded
from tests.tap.models import WIDTH, tiny
from tests.tap.projecting import (
    COLUMNS,
    POINTS,
    Planned,
    bound,
    by_position,
    generate,
    kept,
    plan,
    written,
)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_readings_are_the_raw_rows_times_the_plan_within_the_stated_bound(architecture: str) -> None:
    model, raw, projected = tiny(architecture), Planned(plan(), Mode.RAW), Planned(plan())
    with kept(model, raw) as tap:
        output = generate(model, tap)
    with kept(model, projected) as tap:
        assert torch.equal(generate(model, tap), output)
        assert tap.errors() == {}
    assert {step.plan_generation for step in raw.steps} == {0}
    assert {step.plan_generation for step in projected.steps} == {1}
    for point in POINTS:
        rows, readings = by_position(raw.steps, point), by_position(projected.steps, point)
        assert rows.keys() == readings.keys()
        assert len(rows) == sum(map(len, PROMPTS)) + 3 * 3
        states, made = np.stack(list(rows.values())), np.stack([readings[key] for key in rows])
        directions = plan().points[point].directions
        exact = states.astype(np.float64) @ directions.astype(np.float64)
        assert (np.abs(made[:, :-1] - exact) <= bound(states, directions)).all()
        assert made[:, -1] == pytest.approx((states.astype(np.float64) ** 2).sum(axis=1), rel=WIDTH * 2**-24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_other_types_are_multiplied_as_float32(dtype: torch.dtype) -> None:
    model, client = tiny().to(dtype), Planned(plan())
    raw = Planned(plan(), Mode.RAW)
    for one in (client, raw):
        with kept(model, one) as tap, torch.no_grad():
            model(torch.tensor([[5, 6, 7, 8]]))
            assert tap.errors() == {}
    ((_, readings), *_), ((_, rows), *_) = client.steps[0].tensors, raw.steps[0].tensors
    assert isinstance(rows, TorchStates)
    states = rows.rows.float().numpy()
    directions = plan().points[TapPoint(1)].directions
    exact = states.astype(np.float64) @ directions.astype(np.float64)
    assert (np.abs(written(readings)[:, :-1] - exact) <= bound(states, directions)).all()


def test_until_the_plan_has_come_nothing_is_sent_and_every_token_is_explained() -> None:
    model, client = tiny(), Planned(None)
    with kept(model, client) as tap:
        generate(model, tap)
        assert client.steps == []
        counts = client.traffic.counts()
        assert dict(counts.unseen) == {UnseenReason.TAP_DROPPED: counts.tokens_computed}
        before = counts.tokens_computed
        client.swap(plan())
        generate(model, tap)
    assert sum(step.tokens for step in client.steps) == before
    assert all(states.projected for step in client.steps for _, states in step.tensors)


def test_a_plan_that_lacks_a_tap_point_asked_for_is_not_used_at_all() -> None:
    """Left out alone, that tap point would look blind; the tokens of a whole step are explained."""
    model, client = tiny(), Planned(plan(layers=(1,)))
    with kept(model, client) as tap:
        generate(model, tap)
    counts = client.traffic.counts()
    assert (client.steps, client.counts().dropped) == ([], 4)
    assert dict(counts.unseen) == {UnseenReason.TAP_DROPPED: counts.tokens_computed}


def test_memory_held_by_rows_that_are_not_multiplied_yet_is_counted() -> None:
    model, client = tiny(), Planned(plan())
    with kept(model, client) as tap:
        generate(model, tap)
    for step in client.steps:
        assert step.held_bytes == step.tokens * len(POINTS) * WIDTH * 4
        assert step.nbytes == step.tokens * len(POINTS) * (COLUMNS + 1) * 4


def test_a_plan_is_swapped_between_steps_and_never_inside_one() -> None:
    """The plan changes while block 1 of the prefill runs; block 2 of it is still read by the old one."""
    model, client = tiny(), Planned(plan(1))
    raw = Planned(plan(1), Mode.RAW)
    handle: Any = None

    def swap_once(*_: Any) -> None:
        handle.remove()
        client.swap(plan(2, columns=COLUMNS + 2))

    with kept(model, raw) as tap:
        generate(model, tap)
    with kept(model, client) as tap:
        with tap.requests(["warm"]):
            model(torch.tensor([[5, 6]]))  # the hooks are in place
        client.steps.clear()
        handle = model.model.layers[2].register_forward_pre_hook(swap_once)
        generate(model, tap)
    assert [step.plan_generation for step in client.steps] == [1, 2, 2, 2]
    for ours, wanted in zip(client.steps, raw.steps, strict=True):
        used = plan(ours.plan_generation, columns=COLUMNS + 2 * (ours.plan_generation - 1))
        for (point, readings), (_, rows) in zip(ours.tensors, wanted.tensors, strict=True):
            states, directions = written(rows), used.points[point].directions
            exact = states.astype(np.float64) @ directions.astype(np.float64)
            assert (np.abs(written(readings)[:, :-1] - exact) <= bound(states, directions)).all()


def test_a_layer_that_the_plan_does_not_read_is_left_out_and_said() -> None:
    model, client = tiny(), Planned(plan(layers=(1,)), asked=POINTS[:1])
    with kept(model, client, layers=[1, 2]) as tap:
        generate(model, tap)
        assert tap.errors() == {"a layer that the plan does not read, in projected mode": 4}
    assert [[point for point, _ in step.tensors] for step in client.steps] == [[TapPoint(1)]] * 4


def test_a_plan_for_another_width_costs_the_rows_and_not_the_model() -> None:
    model, client = tiny(), Planned(plan(width=WIDTH + 1))
    plain = model.generate(**left_padded(), max_new_tokens=4, do_sample=False, eos_token_id=None)
    with kept(model, client) as tap:
        assert torch.equal(generate(model, tap), plain)
        assert tap.errors() == {"layer_hook": 4}
    counts = client.traffic.counts()
    assert client.steps == []
    assert dict(counts.unseen) == {UnseenReason.UNSUPPORTED: counts.tokens_computed}


def test_a_sampled_step_carries_some_of_its_rows_as_they_are() -> None:
    model, client = tiny(), Planned(plan(), sampled_steps=1.0)
    with kept(model, client) as tap:
        generate(model, tap)
    for step in client.steps:
        for point, readings in step.tensors:
            sample = readings.sample
            assert sample is not None
            assert 1 <= len(sample.rows) <= 4
            assert not sample.states.projected
            states, directions = written(sample.states), plan().points[point].directions
            claimed = written(readings)[list(sample.rows), :-1]
            exact = states.astype(np.float64) @ directions.astype(np.float64)
            assert (np.abs(claimed - exact) <= bound(states, directions)).all()


@given(st.floats(0.001, 1.0), st.integers(0, 1 << 40))
def test_the_share_of_sampled_steps_is_kept_over_any_stretch_of_steps(share: float, start: int) -> None:
    taken = sum(bool(sample_rows(number, 3, share)) for number in range(start, start + 2000))
    assert abs(taken - 2000 * share) <= 8


@given(st.integers(0, 1 << 40), st.integers(1, 300))
def test_sampled_rows_are_rows_of_the_step_and_the_same_whenever_asked(step: int, rows: int) -> None:
    which = list(sample_rows(step, rows, 1.0))
    assert which == list(sample_rows(step, rows, 1.0))
    assert [row for row in which if row < rows] == sorted(set(which))
    assert 1 <= len(which) <= 4


def test_a_part_of_a_product_is_that_part_of_the_whole_with_its_share_of_the_sample() -> None:
    rows = torch.randn(9, WIDTH, generator=torch.manual_seed(3))
    directions = plan().points[TapPoint(1)].directions
    whole = Product(rows, directions, Sample((1, 4, 7), TorchStates(rows[1::3])))
    part = whole.part(3, 8)
    assert part.shape == (5, COLUMNS + 1)
    np.testing.assert_allclose(written(part), written(whole)[3:8], rtol=1e-5)
    assert part.sample is not None
    assert part.sample.rows == (1, 4)
    assert (written(part.sample.states) == rows[[4, 7]].numpy()).all()
    assert whole.part(2, 4).sample is None


def test_rows_that_overflow_are_sent_as_what_they_are_and_the_sidecar_decides() -> None:
    rows = torch.full((1, WIDTH), 1e38)
    readings = written(Product(rows, np.ones((WIDTH, 1), np.float32), None))
    assert np.isinf(readings).all()
