"""The variable that taps an engine: what it says, and what is said when it makes no sense."""

from __future__ import annotations

import logging

import pytest

from sidecar.tap.faults import TapRefusedError
from sidecar.tap.limits import LinkLimits
from sidecar.tap.switch import is_on, switch_on
from sidecar.tap.wish import Wish
from sidecar.types import Site, TapPoint

LOG = logging.getLogger("stethoscope.tap")


def switched(put: list[Wish], why: Exception | None = None) -> None:
    """What an engine's plugin does: ``put`` gets the wish, and then ``why`` is raised."""

    def putting(wish: Wish) -> None:
        put.append(wish)
        if why is not None:
            raise why

    switch_on(putting, "The engine", LOG)


@pytest.mark.parametrize(
    ("told", "on"),
    [(None, False), ("", False), (" ", False), ("0", False), (" off ", False), ("on", True), ("8", True)],
)
def test_it_is_off_unless_something_is_wanted(told: str | None, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STETHOSCOPE_TAP", raising=False)
    if told is not None:
        monkeypatch.setenv("STETHOSCOPE_TAP", told)
    assert is_on() is on


def test_what_is_wanted_and_what_bounds_it_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STETHOSCOPE_TAP", "8, blocks.9.mlp_out")
    monkeypatch.setenv("STETHOSCOPE_QUEUE_S", "1.5")
    monkeypatch.setenv("STETHOSCOPE_LINGER_S", "0.01")
    put: list[Wish] = []
    switched(put)
    assert put == [Wish((TapPoint(8), TapPoint(9, Site.MLP_OUT)), limits=LinkLimits(queue_s=1.5, linger_s=0.01))]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("STETHOSCOPE_TAP", "8;14", "'8;14' is no tap point"),
        ("STETHOSCOPE_QUEUE_S", "soon", "'soon' is not a number of seconds"),
        ("STETHOSCOPE_QUEUE_S", "-1", "'-1' is not a number of seconds"),
        ("STETHOSCOPE_QUEUE_S", "nan", "'nan' is not a number of seconds"),
        ("STETHOSCOPE_LINGER_S", "long", "'long' is not a number of seconds from 0"),
        ("STETHOSCOPE_LINGER_S", "-0.1", "'-0.1' is not a number of seconds from 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line_and_nothing_is_put(
    variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STETHOSCOPE_TAP", "on")
    monkeypatch.setenv(variable, value)
    put: list[Wish] = []
    switched(put)
    assert put == []
    (record,) = caplog.records
    assert record.getMessage().startswith(f"not_tapped: {variable}: {why}")
    assert record.getMessage().endswith("; The engine goes on as it is")
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("why", "told", "traced"),
    [
        (TapRefusedError("it is raining"), "not_tapped: it is raining; The engine goes on as it is", False),
        (KeyError("a bug"), "not_tapped: The engine goes on as it is", True),
    ],
    ids=["a limit", "a bug"],
)
def test_what_stands_in_the_way_is_told_and_does_not_reach_the_engine(
    why: Exception, told: str, traced: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STETHOSCOPE_TAP", "on")
    switched([], why)
    (record,) = caplog.records
    assert record.getMessage() == told
    assert bool(record.exc_info) is traced
