"""Projected mode in a real vLLM: the readings that it sends, held against rows that it sends along and against transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.tap import wire
from sidecar.types import TapPoint
from tests.engines.models import WIDTH
from tests.engines.reference import Array, Reference
from tests.engines.tapped import Tapped, asking, tap_id
from tests.tap.projecting import bound
from tests.tap.receiver import decode
from tests.waiting import until

COLUMNS = 5
Directions = dict[TapPoint, Array]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rows of a step that went along as they are, [S, D], and the readings that the engine made of them, [S, K + 1]."""

    generation: int
    point: TapPoint
    rows: Array
    readings: Array

    def check(self, directions: Array) -> None:
        """Fails unless a sidecar that multiplies these rows itself comes within the stated bound: twice that of one product."""
        own = self.rows @ directions
        assert self.readings.shape == (len(own), own.shape[1] + 1)
        assert np.all(np.abs(self.readings[:, :-1] - own) <= 2 * bound(self.rows, directions))
        squared = np.square(self.rows).sum(axis=1)
        unit = self.rows.shape[1] * 2.0**-24
        assert np.all(np.abs(self.readings[:, -1] - squared) <= 2 * unit / (1 - unit) * squared)


def sampled(tapped: Tapped) -> Iterator[Sampled]:
    """All that have come."""
    points = {wire.tap_point(point).SerializeToString(): point for point in tapped.points}
    for batch in tapped.receiver.batches:
        for tensor in batch.tensors:
            if tensor.HasField("sample"):
                which = tensor.sample
                rows = ingest_pb2.TapTensor(
                    dtype=which.dtype, rows=len(which.rows), columns=which.columns, raw=which.raw
                )
                point = points[tensor.tap_point.SerializeToString()]
                yield Sampled(batch.plan_generation, point, decode(rows), decode(tensor)[list(which.rows)])


def directions(points: Sequence[TapPoint], columns: int, generation: int) -> Directions:
    """Random ones, others in every generation."""
    rng = np.random.default_rng([3, generation])
    return {point: rng.standard_normal((WIDTH, columns)).astype("<f4") for point in points}


def project(tapped: Tapped, generation: int, columns: int = COLUMNS) -> Directions:
    """Have the engine read by another plan, and send rows of every step along. Back when the plan has come to it."""
    made = directions(tapped.points, columns, generation)
    plan = control_pb2.FetchPlanResponse(generation=generation)
    for point, one in made.items():
        names = [f"d{n}" for n in range(columns)]
        plan.tensors.add(tap_point=wire.tap_point(point), width=WIDTH, columns=names, directions=one.tobytes())
    tapped.receiver.plan = plan
    settings = asking(*tapped.points, generation=generation)
    settings.mode, settings.sampled_steps = ingest_pb2.CAPTURE_MODE_PROJECTED, 1.0
    tapped.ask(settings)
    until(lambda: any(f" plan generation={generation} " in line for line in tapped.server.log))
    return made


def assert_projected(
    tapped: Tapped, reference: Reference, prompt: Sequence[int], tolerance: float, squared: float
) -> None:
    """Every reading is that of its row, as far as transformers' rows are the engine's; and of the engine's own within the bound.

    tolerance: of the two engines' rows. squared: of a row's squared length.
    """
    made = project(tapped, 1)
    (done,) = tapped.complete([prompt], ["projected"], 16)
    tapped.ask(asking(*tapped.points))
    want = reference.states(done.fed, tapped.points)
    for point, columns in made.items():
        got = tapped.rows(tap_id(done), point, projected=True)
        assert sorted(got) == list(range(len(done.fed)))
        for position, row in got.items():
            state = want[point][position]
            scale = np.linalg.norm(state) * np.linalg.norm(columns, axis=0)
            assert np.all(np.abs(row[:-1] - state @ columns) <= tolerance * scale)
            assert abs(row[-1] - state @ state) <= squared * (state @ state)
    found = [one for one in sampled(tapped) if one.generation == 1]
    assert {one.point for one in found} == set(tapped.points)
    assert sum(len(one.rows) for one in found) >= 16 * len(tapped.points)
    for one in found:
        one.check(made[one.point])


def assert_swapped(tapped: Tapped, prompt: Sequence[int]) -> None:
    """A plan of another width comes while a request is answered: what follows is read by it, and no position is lost or twice."""
    plans, receiver = {2: project(tapped, 2)}, tapped.receiver
    with tapped.server.stream(prompt, request_id="swapped", max_tokens=900, ignore_eos=True):
        receiver.wait(lambda _: len(_generations(tapped)) >= 3)
        plans[3] = project(tapped, 3, COLUMNS + 3)
        receiver.wait(lambda _: _generations(tapped).count(3) >= 3)
    tapped.wait_for_end("cmpl-swapped-0")
    tapped.ask(asking(*tapped.points))
    generations = _generations(tapped)
    assert set(generations) == {2, 3}
    assert generations == sorted(generations)
    for point in tapped.points:
        rows = tapped.rows("cmpl-swapped-0", point, projected=True)
        assert sorted(rows) == list(range(len(rows)))
        widths = [len(rows[position]) - 1 for position in sorted(rows)]
        assert widths == sorted(widths)
        assert set(widths) == {COLUMNS, COLUMNS + 3}
    found = [one for one in sampled(tapped) if one.generation in plans]
    assert {(one.generation, one.point) for one in found} == {(n, point) for n in plans for point in tapped.points}
    for one in found:
        one.check(plans[one.generation][one.point])


def _generations(tapped: Tapped) -> list[int]:
    """By which plan each step of the request was read, in order."""
    batches = [one for one in tapped.receiver.batches if "cmpl-swapped-0" in one.segments.request_ids]
    assert [one.step for one in batches] == sorted(one.step for one in batches)
    return [one.plan_generation for one in batches]
