"""What the sender makes on a device is what the host would have made."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from sidecar.tap.step import Sample
from sidecar.tap.tensors import workshop
from sidecar.tap.tensors.projection import Made, Product, Readings, multiply
from sidecar.tap.tensors.resident import Resident
from sidecar.tap.tensors.states import TorchStates
from sidecar.tap.tensors.workshop import Workshop
from sidecar.types import TapPoint, UnseenReason
from tests.tap.models import WIDTH, tiny
from tests.tap.projecting import (
    COLUMNS,
    NOTHING,
    POINTS,
    Planned,
    Values,
    bound,
    kept,
    plan,
    written,
)


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
