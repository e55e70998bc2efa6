"""A real sidecar that does not want this engine, or not this ring: the tap says so, and goes on as well as it can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sidecar.outcome import Result
from sidecar.pipeline import Pipeline
from sidecar.service import Sidecar
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.types import ModelIdentity, TapLedgerCounts
from sidecar.worker.build import Parts
from tests.builders import MODEL, WIDTH
from tests.tap.samples import step
from tests.waiting import until

Serve = Callable[..., Sidecar]


@pytest.fixture(params=["grpc", "ring"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeTap = Callable[..., TapClient]


@pytest.fixture
def make_tap() -> Iterator[MakeTap]:
    made: list[TapClient] = []

    def make(sidecar: Sidecar, engine: str, model: ModelIdentity = MODEL, **limits: float) -> TapClient:
        bounds = LinkLimits(**limits)  # type: ignore[arg-type]  # ints and floats, as named
        client = TapClient(sidecar.address, model, engine_id=engine, limits=bounds)
        made.append(client)
        client.start()
        return client

    yield make
    for client in made:
        client.stop(2.0)


def _open(sidecar: Sidecar, client: TapClient, transport: str) -> TapClient:
    """Connected, and known there as the owner of its id, by the way it should go."""
    until(lambda: client.connected and (client.engine_id, transport) in sidecar.snapshot().run.streams)
    return client


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def _is_scored(client: TapClient) -> None:
    assert client.submit(step(columns=WIDTH))
    until(lambda: client.counts().ok == 1)


@pytest.mark.parametrize(
    ("engine", "model", "named"),
    [
        ("one", MODEL, ("ALREADY_EXISTS", "engine id one", "STETHOSCOPE_ENGINE_ID")),
        ("two", replace(MODEL, weights_digest="c" * 64), ("FAILED_PRECONDITION", "another model", "(two)")),
    ],
    ids=["an id in use", "another model"],
)
def test_a_refused_engine_says_why_once_and_is_tapped_when_the_other_has_left(
    serve: Serve,
    make_tap: MakeTap,
    transport: str,
    caplog: pytest.LogCaptureFixture,
    engine: str,
    model: ModelIdentity,
    named: tuple[str, ...],
) -> None:
    sidecar = serve(**{"ring.enabled": transport == "ring"})
    first = _open(sidecar, make_tap(sidecar, "one"), transport)
    second = make_tap(sidecar, engine, model)
    until(lambda: sidecar.snapshot().engines_refused >= 3)
    (told,) = _errors(caplog)
    assert all(part in told for part in (*named, "untapped", "keeps trying")), told
    assert not second.connected
    assert not second.submit(step(columns=WIDTH))
    assert second.counts() == TapLedgerCounts(dropped=1)
    _is_scored(first)
    first.stop(10.0)
    _open(sidecar, second, transport)
    _is_scored(second)
    assert _errors(caplog) == [told]


def test_a_reconnect_that_outruns_the_end_of_its_own_old_stream_succeeds_and_is_no_alarm(
    serve: Serve, make_tap: MakeTap, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = threading.Event()

    class Stuck(Pipeline):
        def submit(self, *args: Any, **kwargs: Any) -> Result:
            """Keeps the worker busy, so that the sidecar cannot notice that the old stream has ended."""
            assert stuck.wait(20.0)
            return super().submit(*args, **kwargs)

    sidecar = serve(
        lambda config: Sidecar(config, write_log=lambda _: None, parts=Parts(pipeline=Stuck)),
        **{"ring.enabled": transport == "ring"},
    )
    client = _open(sidecar, make_tap(sidecar, "one", answer_s=0.2), transport)
    assert client.submit(step(columns=WIDTH))
    until(lambda: client.counts().unknown == 1 and not client.connected)
    assert client.counts() == TapLedgerCounts(sent=1, unknown=1)
    stuck.set()
    _open(sidecar, client, transport)
    _is_scored(client)
    assert _errors(caplog) == []


def test_a_ring_that_is_left_in_the_middle_of_traffic_loses_no_step_and_scores_none_twice(
    serve: Serve, make_tap: MakeTap
) -> None:
    sidecar = serve()
    client = _open(sidecar, make_tap(sidecar, "one", queue_s=60.0), "ring")
    for number in range(200):
        assert client.submit(step("r", number, columns=WIDTH))
        if number == 100:
            until(lambda: client.counts().ok > 10)
            assert client._link is not None
            ring = client._link._ring
            assert ring is not None
            ring._ring.leave()
    until(lambda: client.counts().ok == 200)
    assert client.counts() == TapLedgerCounts(sent=200, ok=200)
    _open(sidecar, client, "grpc")
    now = sidecar.snapshot()
    assert now.step_batches.scored == 200
    assert now.step_batches.balanced
    assert set(now.step_batches.dropped.values()) <= {
        0,
        1,
        2,
    }  # what was scored on the ring and answered there too late
    assert now.step_batches.received == 200 + sum(now.step_batches.dropped.values())
    client.stop(10.0)
    until(lambda: sidecar.snapshot().run.streams == ())
