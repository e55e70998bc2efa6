from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protos.stethoscope.v1 import ingest_pb2
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.tap.traffic import TrafficMeter
from tests.service_fixtures import artifacts, home, lines, serve
from tests.tap.clients import MakeClient
from tests.tap.receiver import Receiver, control
from tests.tap.samples import IDENTITY

__all__ = ["address", "artifacts", "home", "lines", "make_client", "make_receiver", "receiver", "serve", "transport"]

MakeReceiver = Callable[[ingest_pb2.Control], Receiver]


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Unix socket with a short path: tmp_path can be longer than a socket's name may be."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"{uuid.uuid4().hex[:8]}.sock"
    return f"unix:{path}" if len(str(path)) < 95 else f"unix:{Path('/tmp') / path.name}"


@pytest.fixture
def transport() -> str:
    """How batches go: "grpc", or "ring" where a module's own fixture of this name says so."""
    return "grpc"


@pytest.fixture
def make_client(address: str) -> Iterator[MakeClient]:
    made: list[TapClient] = []

    def make(traffic: TrafficMeter | None = None, **limits: float) -> TapClient:
        bounds = LinkLimits(**limits)  # type: ignore[arg-type]  # ints and floats, as named
        client = TapClient(address, IDENTITY, engine_id="engine", traffic=traffic, limits=bounds)
        made.append(client)
        client.start()
        return client

    yield make
    for client in made:
        client.stop(1.0)


@pytest.fixture
def make_receiver(address: str, transport: str) -> Iterator[MakeReceiver]:
    made: list[Receiver] = []

    def make(settings: ingest_pb2.Control) -> Receiver:
        receiver = Receiver(address, settings, rings=transport == "ring")
        receiver.start()
        made.append(receiver)
        return receiver

    yield make
    for receiver in made:
        receiver.stop()


@pytest.fixture
def receiver(make_receiver: MakeReceiver) -> Receiver:
    return make_receiver(control())
