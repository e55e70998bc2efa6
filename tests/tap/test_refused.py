"""A real sidecar that does not want this engine: the tap says so, keeps trying and lets the engine run untapped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sidecar.service import Sidecar
from sidecar.tap.client import TapClient
from sidecar.tap.limits import LinkLimits
from sidecar.types import EngineId, ModelIdentity, TapLedgerCounts
from tests.builders import MODEL, WIDTH
from tests.tap.samples import step
from tests.tap.test_client import until

Serve = Callable[..., Sidecar]
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


def _open(sidecar: Sidecar, client: TapClient) -> TapClient:
    """Connected, and known there as the owner of its id."""
    until(lambda: client.connected and sidecar.pipeline.coverage.streams(EngineId(client.engine_id)))
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
    caplog: pytest.LogCaptureFixture,
    engine: str,
    model: ModelIdentity,
    named: tuple[str, ...],
) -> None:
    sidecar = serve()
    first = _open(sidecar, make_tap(sidecar, "one"))
    second = make_tap(sidecar, engine, model)
    until(lambda: sidecar.pipeline.engines_refused >= 3)
    (told,) = _errors(caplog)
    assert all(part in told for part in (*named, "untapped", "keeps trying")), told
    assert not second.connected
    assert not second.submit(step(columns=WIDTH))
    assert second.counts() == TapLedgerCounts(dropped=1)
    _is_scored(first)
    first.stop(10.0)
    _open(sidecar, second)
    _is_scored(second)
    assert _errors(caplog) == [told]


def test_a_reconnect_that_outruns_the_end_of_its_own_old_stream_succeeds_and_is_no_alarm(
    serve: Serve, make_tap: MakeTap, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar = serve()
    stuck, submit = threading.Event(), sidecar.pipeline.submit

    def slow(*args: object) -> object:
        """Keeps the old stream's handler busy, so that the sidecar cannot notice that the stream has ended."""
        stuck.wait(20.0)
        return submit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sidecar.pipeline, "submit", slow)
    client = _open(sidecar, make_tap(sidecar, "one", answer_s=0.2))
    assert client.submit(step(columns=WIDTH))
    until(lambda: sidecar.pipeline.engines_refused >= 1)
    assert client.counts() == TapLedgerCounts(sent=1, unknown=1)
    stuck.set()
    _open(sidecar, client)
    _is_scored(client)
    assert _errors(caplog) == []
