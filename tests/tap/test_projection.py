"""Projected mode without a sidecar: what leaves the engine, and that it is what the sidecar would have computed itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tap.plan import FetchedPlan, PointPlan
from sidecar.tap.step import CapturedStep, Sample, States, payload_bytes
from sidecar.tap.transformers import attach, workshop
from sidecar.tap.transformers.projection import Made, Product, Readings, multiply, sample_rows
from sidecar.tap.transformers.resident import Resident
from sidecar.tap.transformers.states import TorchStates
from sidecar.tap.transformers.tap import Tap
from sidecar.tap.transformers.workshop import Workshop
from sidecar.tap.wire import Settings
from sidecar.types import ElementType, Mode, SamplingPolicy, TapPoint, UnseenReason
from tests.tap.engine import PROMPTS, left_padded
from tests.tap.models import WIDTH, tiny
from tests.tap.test_recorder import Keeper

NAMES = ["a", "b", "c"]
POINTS = (TapPoint(1), TapPoint(2))
COLUMNS = 5
NOTHING: Any = None  # the event of a device, where there is none
Values = npt.NDArray[np.float32]


class Planned(Keeper):
    """A client that has fetched a plan, whose other end is a list."""

    def __init__(
        self,
        plan: FetchedPlan | None,
        mode: Mode = Mode.PROJECTED,
        sampled_steps: float = 0.0,
        asked: tuple[TapPoint, ...] = POINTS,
    ) -> None:
        super().__init__()
        self._given = plan
        self.settings = Settings(1, SamplingPolicy(1.0), asked, mode, sampled_steps)

    @property
    def plan(self) -> FetchedPlan | None:
        return self._given

    def swap(self, plan: FetchedPlan) -> None:
        self._given = plan
        self.settings = Settings(plan.generation, SamplingPolicy(1.0), POINTS, Mode.PROJECTED)


def plan(
    generation: int = 1, *, width: int = WIDTH, columns: int = COLUMNS, layers: tuple[int, ...] = (1, 2)
) -> FetchedPlan:
    """Random directions, others for every generation and tap point."""
    points = {}
    for layer in layers:
        directions = np.random.default_rng([generation, layer]).normal(size=(width, columns)).astype(np.float32)
        directions.setflags(write=False)
        points[TapPoint(layer)] = PointPlan(tuple(f"d{k}" for k in range(columns)), directions)
    return FetchedPlan(generation, MappingProxyType(points))


def bound(rows: Values, directions: Values) -> npt.NDArray[np.float64]:
    """How far a float32 product may lie from the exact one: D u / (1 - D u) times the norms. [T, K]."""
    unit = rows.shape[1] * 2.0**-24
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)[:, None] * np.linalg.norm(
        directions.astype(np.float64), axis=0
    )
    found: npt.NDArray[np.float64] = unit / (1 - unit) * norms
    return found


def written(states: States) -> Values:
    """What goes on the wire, in float32."""
    payload = bytearray(payload_bytes(states))
    states.write(memoryview(payload))
    assert states.dtype is ElementType.F32
    return np.frombuffer(payload, np.float32).reshape(states.shape)


@contextmanager
def kept(model: Any, client: Planned, **settings: Any) -> Iterator[Tap]:
    tap = attach(model, client=client, **settings)
    try:
        yield tap
    finally:
        tap.detach()
        client.stop()


def generate(model: Any, tap: Tap) -> torch.Tensor:
    with tap.requests(NAMES):
        output: torch.Tensor = model.generate(**left_padded(), max_new_tokens=4, do_sample=False, eos_token_id=None)
    return output


def by_position(steps: list[CapturedStep], point: TapPoint) -> dict[tuple[str, int], Values]:
    """Every row that was kept, by request and position."""
    found: dict[tuple[str, int], Values] = {}
    for step in steps:
        values = written(dict(step.tensors)[point])
        keys = [(segment.wire_id, position) for segment in step.segments for position in segment.positions]
        assert len(keys) == len(values)
        assert not found.keys() & set(keys)
        found |= dict(zip(keys, values, strict=True))
    return found


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


def device(rows: torch.Tensor, *directions: Values, sample: Sample | None = None) -> list[Readings]:
    """What a GPU makes of rows [P, T, D], made on the CPU; every tap point has its own number of directions."""
    points, count, _ = rows.shape
    room = max(one.shape[1] for one in directions)
    stacked = torch.full((points, rows.shape[2], room), torch.nan)  # what lies behind a plan's columns is nobody's
    for one, values in zip(stacked, directions, strict=True):
        one[:, : values.shape[1]] = torch.tensor(values)
    made = Made.empty(points, count, room, rows.device)
    multiply(rows, stacked, made)
    parts = made.whole.unbind(0)
    return [
        Readings(partial(torch.Tensor.cpu, part), values.shape[1], 0, count, count, 0, sample)
        for part, values in zip(parts, directions, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_products_of_a_device_and_of_the_host_are_the_same_within_the_bound(dtype: torch.dtype) -> None:
    """``multiply`` runs on a GPU where there is one; its arithmetic is checked here on the CPU."""
    rows = torch.randn(2, 64, 576, generator=torch.manual_seed(3)).to(dtype)
    directions = [
        plan(width=576, columns=columns).points[TapPoint(layer)].directions for layer, columns in ((1, 5), (2, 3))
    ]
    for states, one, readings in zip(rows, directions, device(rows, *directions), strict=True):
        host, made = written(Product(states, one, None)), written(readings)
        assert made.shape == host.shape == (64, one.shape[1] + 1)
        assert (np.abs(host[:, :-1] - made[:, :-1]) <= 2 * bound(states.float().numpy(), one)).all()
        assert made[:, -1] == pytest.approx(host[:, -1], rel=2 * 576 * 2**-24)


def test_where_the_engine_allows_tf32_the_product_is_made_in_float64() -> None:
    rows = torch.randn(1, 8, WIDTH, generator=torch.manual_seed(3))
    directions = plan().points[TapPoint(1)].directions
    exact = (rows[0].double() @ torch.tensor(directions).double()).float().numpy()
    torch.set_float32_matmul_precision("high")
    try:
        (high,) = device(rows, directions)
    finally:
        torch.set_float32_matmul_precision("highest")
    (highest,) = device(rows, directions)
    assert (written(high)[:, :-1] == exact).all()
    assert not (written(highest)[:, :-1] == exact).all()


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_autocast_of_the_engine_does_not_reach_the_readings(precision: str) -> None:
    rows = torch.randn(1, 8, WIDTH, generator=torch.manual_seed(3))
    directions = plan().points[TapPoint(1)].directions
    torch.set_float32_matmul_precision(precision)
    try:
        (plain,) = device(rows, directions)
        with torch.autocast("cpu", torch.bfloat16):
            (cast,) = device(rows, directions)
            assert (rows[0] @ torch.tensor(directions)).dtype is torch.bfloat16
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (written(cast) == written(plain)).all()


def test_a_part_of_what_a_device_made_is_that_part_of_the_whole_with_its_share_of_the_sample() -> None:
    rows = torch.randn(2, 9, WIDTH, generator=torch.manual_seed(3))
    sample = Sample((1, 4, 7), TorchStates(rows[0, 1::3]))
    points = plan().points
    whole = device(rows, points[TapPoint(1)].directions, points[TapPoint(2)].directions[:, :2], sample=sample)
    for one in whole:
        part = one.part(2, 9).part(1, 6)
        assert part.shape == (5, one.columns + 1)
        assert (written(part) == written(one)[3:8]).all()
        assert part.sample is not None
        assert part.sample.rows == (1, 4)
        assert (written(part.sample.states) == rows[0, [4, 7]].numpy()).all()
        assert one.part(2, 4).sample is None


def test_what_a_device_made_of_rows_that_overflow_is_sent_as_it_is() -> None:
    (readings,) = device(torch.full((1, 1, WIDTH), 1e38), np.ones((WIDTH, 1), np.float32))
    assert np.isinf(written(readings)).all()


@pytest.mark.parametrize("together", [1, 2 * 6 * WIDTH, 1 << 20], ids=["one by one", "by two", "at once"])
@pytest.mark.parametrize("chosen", [None, [0, 1, 3, 5]], ids=["all", "some"])
def test_what_a_device_makes_of_a_steps_rows_is_theirs_however_many_points_go_together(
    together: int, chosen: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one plan and then another, of other directions, in the same memory; on the CPU, which can do all of it."""
    monkeypatch.setattr(workshop, "_FLOATS", together)
    points = (TapPoint(0), TapPoint(1), TapPoint(2))
    kept_rows = list(torch.randn(3, 6, WIDTH, generator=torch.manual_seed(3)))
    resident, places = Resident(torch.device("cpu")), set()
    for columns in (COLUMNS, COLUMNS + 2, COLUMNS):
        used = plan(columns, columns=columns, layers=(0, 1, 2))
        found = workshop.queue(workshop.Kept(points, kept_rows, NOTHING, chosen, used, range(1, 4, 2)), resident)
        places.add(resident.memory.data_ptr())
        for point, rows, made, sample in zip(points, kept_rows, found.values, found.samples, strict=True):
            wanted = rows if chosen is None else rows[chosen]
            directions, count = used.points[point].directions, len(wanted)
            readings = Readings(partial(torch.Tensor.cpu, made), columns, 0, count, count, 0, None)
            exact = wanted.numpy().astype(np.float64) @ directions.astype(np.float64)
            assert (np.abs(written(readings)[:, :-1] - exact) <= bound(wanted.numpy(), directions)).all()
            assert torch.equal(sample, wanted[1:4:2])
    assert len(places) == 1
    raw = workshop.queue(workshop.Kept(points, kept_rows, NOTHING, chosen, None, range(0)), resident)
    assert raw.samples == []
    for rows, made in zip(kept_rows, raw.values, strict=True):
        assert torch.equal(made, rows if chosen is None else rows[chosen])


def test_tap_points_that_pass_in_another_order_are_read_by_their_own_directions() -> None:
    resident, used = Resident(torch.device("cpu")), plan()
    rows = list(torch.randn(2, 6, WIDTH, generator=torch.manual_seed(3)))
    there = workshop.queue(workshop.Kept(POINTS, rows, NOTHING, None, used, range(0)), resident).values
    back = workshop.queue(workshop.Kept(POINTS[::-1], rows[::-1], NOTHING, None, used, range(0)), resident).values
    assert all(torch.equal(one, other) for one, other in zip(there, back[::-1], strict=True))
    (alone,) = workshop.queue(workshop.Kept(POINTS[1:], rows[1:], NOTHING, None, used, range(0)), resident).values
    torch.testing.assert_close(alone, there[1])


def test_a_job_is_done_once_for_all_who_ask() -> None:
    class Counted(Workshop):
        calls = 0

        def make(self, kept: workshop.Kept) -> workshop.Results:
            self.calls += 1
            return workshop.queue(kept, Resident(torch.device("cpu")))

    shop, rows = Counted(), [torch.zeros(3, WIDTH), torch.ones(3, WIDTH)]
    job = workshop.Job(workshop.Kept(POINTS, rows, NOTHING, None, plan(), range(2)), shop)
    assert torch.equal(job.samples(1), rows[1][:2])
    assert job.values(0).shape == job.values(1).shape == (3 * (COLUMNS + 1),)
    assert shop.calls == 1


def test_a_device_of_another_kind_costs_the_rows_and_not_the_model() -> None:
    """Its tokens are explained: no part of the tap may look blind."""
    model, client = tiny().to("meta"), Planned(plan())
    with kept(model, client) as tap:
        with torch.no_grad():
            model(torch.empty((1, 4), dtype=torch.int64, device="meta"))
        assert tap.errors() == {"layer_hook": 1}
    assert client.steps == []
    assert dict(client.traffic.counts().unseen) == {UnseenReason.UNSUPPORTED: 4}
