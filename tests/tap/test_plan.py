"""The plan as the client fetches it, from a server that speaks the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.tap.client import TapClient
from sidecar.types import TapPoint
from tests.tap.clients import MakeClient, connected
from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import Receiver, control
from tests.waiting import until

Connect = Callable[[], TapClient]


@pytest.fixture
def connect(make_client: MakeClient) -> Connect:
    return lambda: connected(make_client())


def projected(generation: int) -> ingest_pb2.Control:
    asked = control((1,), generation=generation)
    asked.mode = ingest_pb2.CAPTURE_MODE_PROJECTED
    return asked


def response(generation: int) -> control_pb2.FetchPlanResponse:
    directions = np.full((8, 2), generation, "<f4")
    tensor = control_pb2.PlanTensor(width=8, columns=["a", "b"], directions=directions.tobytes())
    tensor.tap_point.layer, tensor.tap_point.site = 1, ingest_pb2.SITE_RESID_POST
    return control_pb2.FetchPlanResponse(generation=generation, tensors=[tensor])


def _generation(client: TapClient) -> int:
    return 0 if client.plan is None else client.plan.generation


def test_in_raw_mode_no_plan_is_fetched(receiver: Receiver, connect: Connect) -> None:
    receiver.plan = response(1)
    client = connect()
    receiver.push(control((1,), generation=2))
    until(lambda: client.settings.plan_generation == 2)
    assert (client.plan, receiver.fetches) == (None, [])


def test_the_plan_follows_the_sidecars_and_is_replaced_as_a_whole(
    make_receiver: MakeReceiver, connect: Connect
) -> None:
    receiver = make_receiver(projected(4))
    receiver.plan = response(4)
    client = connect()
    until(lambda: _generation(client) == 4)
    first = client.plan
    assert first is not None
    receiver.plan = response(5)
    receiver.push(projected(5))
    until(lambda: _generation(client) == 5)
    assert client.plan is not None
    np.testing.assert_array_equal(client.plan.points[TapPoint(1)].directions, np.full((8, 2), 5.0))
    np.testing.assert_array_equal(
        first.points[TapPoint(1)].directions, np.full((8, 2), 4.0)
    )  # whoever holds it keeps it
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.generation = 6  # type: ignore[misc]
    receiver.push(control((1,), generation=5))  # back to raw
    until(lambda: client.plan is None)
    assert receiver.fetches == [0, 4]
    assert client.errors == 0


def test_a_plan_that_cannot_be_had_yet_is_asked_for_again(make_receiver: MakeReceiver, connect: Connect) -> None:
    receiver = make_receiver(projected(4))
    client = connect()
    receiver.wait(lambda r: r.fetches)
    assert client.plan is None
    receiver.plan = response(3)  # on its way to the next
    until(lambda: _generation(client) == 3)
    receiver.plan = response(4)
    until(lambda: _generation(client) == 4)
    assert client.errors == 0


def test_a_plan_that_is_none_is_counted_and_the_old_one_stays(make_receiver: MakeReceiver, connect: Connect) -> None:
    receiver = make_receiver(projected(4))
    receiver.plan = response(4)
    client = connect()
    until(lambda: _generation(client) == 4)
    broken = response(5)
    broken.tensors[0].width = 7
    receiver.plan = broken
    receiver.push(projected(5))
    until(lambda: client.errors >= 1)
    assert _generation(client) == 4
    receiver.plan = response(5)
    until(lambda: _generation(client) == 5)


def test_another_sidecars_generations_are_not_taken_for_those_of_the_last(
    make_receiver: MakeReceiver, connect: Connect
) -> None:
    first = make_receiver(projected(1))
    first.plan = response(1)
    client = connect()
    until(lambda: _generation(client) == 1)
    first.stop()
    until(lambda: not client.connected and client.plan is None)
    second = make_receiver(projected(1))
    second.plan = response(1)
    until(lambda: _generation(client) == 1)
    assert second.fetches[0] == 0
