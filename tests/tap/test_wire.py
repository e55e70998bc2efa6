from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.tap import wire
from sidecar.tap.step import wire_id
from sidecar.types import Mode, SamplingPolicy, TapPoint
from tests.tap.receiver import control


@pytest.mark.parametrize("name", ["", "two words", "a\nb", "\x1b[31m", "x" * 257, "\udcff", '{"level":'])
def test_an_id_that_the_sidecar_would_refuse_becomes_a_hash(name: str) -> None:
    assert wire_id(name).startswith("hashed:")
    assert wire_id(wire_id(name)) == wire_id(name)
    assert wire_id(name) != wire_id(name + "x")


def test_settings_are_read_as_sent() -> None:
    told = wire.settings(control((3, 1), fraction=0.25, stride=4, first=2, last=8, generation=7))
    assert told.policy == SamplingPolicy(0.25, 4, 2, 8)
    assert (told.plan_generation, [point.name for point in told.tap_points]) == (
        7,
        ["blocks.3.resid_post", "blocks.1.resid_post"],
    )


@pytest.mark.parametrize(("sent", "read"), [(float("nan"), 0.0), (-1.0, 0.0), (7.0, 1.0)])
def test_a_share_that_is_none_cannot_stop_the_tap(sent: float, read: float) -> None:
    assert wire.settings(control(fraction=sent, stride=0)).policy == SamplingPolicy(read, 1)


def test_what_is_asked_for_besides_rows_is_read_as_sent() -> None:
    told = control((1,))
    assert (wire.settings(told).mode, wire.settings(told).sampled_steps) == (Mode.RAW, 0.0)
    told.mode, told.sampled_steps = ingest_pb2.CAPTURE_MODE_PROJECTED, 0.25
    assert (wire.settings(told).mode, wire.settings(told).sampled_steps) == (Mode.PROJECTED, 0.25)


def test_a_plan_is_read_as_sent_and_cannot_be_written_to() -> None:
    directions = np.arange(6, dtype="<f4").reshape(3, 2)
    tensor = control_pb2.PlanTensor(width=3, columns=["a", "b"], directions=directions.tobytes())
    tensor.tap_point.layer, tensor.tap_point.site = 4, ingest_pb2.SITE_MLP_OUT
    unknown = control_pb2.PlanTensor(width=1, columns=["x"], directions=bytes(4))
    unknown.tap_point.site = 77  # of a sidecar newer than this tap
    plan = wire.fetched_plan(control_pb2.FetchPlanResponse(generation=5, tensors=[tensor, unknown]).SerializeToString())
    ((point, found),) = plan.points.items()
    assert (plan.generation, point.name, found.columns) == (5, "blocks.4.mlp_out", ("a", "b"))
    np.testing.assert_array_equal(found.directions, directions)
    assert not found.directions.flags.writeable


@pytest.mark.parametrize(("width", "columns"), [(3, ["a"]), (2, ["a", "b", "c"]), (0, [])])
def test_a_plan_whose_bytes_do_not_fit_its_shape_is_none(width: int, columns: list[str]) -> None:
    tensor = control_pb2.PlanTensor(width=width, columns=columns, directions=bytes(16))
    tensor.tap_point.site = ingest_pb2.SITE_RESID_POST
    with pytest.raises(ValueError):
        wire.fetched_plan(control_pb2.FetchPlanResponse(tensors=[tensor]).SerializeToString())
    with pytest.raises(DecodeError):
        wire.fetched_plan(b"\xff\xff")


def test_only_advice_that_asks_for_something_is_passed_on() -> None:
    result = ingest_pb2.StepResult()
    for name, action in (("a", ingest_pb2.ACTION_ALLOW), ("b", ingest_pb2.ACTION_ESCALATE), ("c", 99)):
        result.verdicts.add(request_id=name, action=action).signals.add(name="s")  # type: ignore[arg-type]  # 99 is from later
    assert list(wire.verdicts(result)) == [("b", "escalate", ("s",))]


def test_a_tap_point_keeps_its_site() -> None:
    for name in ("blocks.3.resid_post", "blocks.0.attn_heads", "blocks.7.mlp_out"):
        sent = wire.tap_point(TapPoint.parse(name))
        assert wire.settings(ingest_pb2.Control(tap_points=[sent])).tap_points == (TapPoint.parse(name),)
