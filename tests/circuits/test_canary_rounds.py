"""Rounds of canaries through a whole sidecar: what moved is told from what did not, and an engine that is gone from a quiet one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.cli import main as probes
from sidecar.circuits.record import read_record
from sidecar.cli import main as sidecar
from sidecar.live.alarms import Canaries
from sidecar.live.canary_file import Kept, read_round, record, write_round
from sidecar.live.canary_rows import LAST
from sidecar.live.canary_send import Sender
from sidecar.types import ModelIdentity
from tests.circuits.served import Live, live, not_a_number, overflowing, write_validated
from tests.circuits.small import HEADS, LAYER, MLP
from tests.circuits.stub_engine import States, StubEngine
from tests.probes.builders import MODEL, WIDTH
from tests.service_fixtures import private_folder

CIRCUIT = {"circuit": "going_on"}
ALL = {**CIRCUIT, "slice": "all"}


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as made:
        write_validated(made / "artifacts" / "going_on")
        (made / "token").write_text("a token")
        (made / "prompts").write_text("\n".join(f"prompt {number}" for number in range(8)))
        yield made


@contextmanager
def watched(
    home: Path,
    engine: StubEngine,
    url: str,
    model: ModelIdentity = MODEL,
    log: Callable[[str], None] = lambda _: None,
    /,
    **more: Any,
) -> Iterator[Live]:
    flags = {
        "circuits.archive": str(home / "archive"),
        "circuits.requests_are_sessions": True,
        "circuits.tick_s": 60,
        "canary.url": url,
        "canary.path": "/v1/completions",
        "canary.token_file": str(home / "token"),
        "canary.prompts": str(home / "prompts"),
        "canary.every_s": 100.0,
        "coverage.forget_s": 1e8,
    }
    with live(home, home / "artifacts", flags | more, model, log=log) as one:
        engine.live = one
        yield one
        engine.live = None


def rounds(one: Live, many: int, outcome: str = "whole") -> None:
    """Wait until so many have ended; a round is due whenever the clock has moved on."""
    ends = time.monotonic() + 20.0
    while one.value("canary_rounds_total", outcome=outcome) < many:
        assert time.monotonic() < ends, one.client.series()
        one.clock.advance(101.0)
        time.sleep(0.05)  # other threads: there is nothing of theirs to wait on


def recorded(home: Path, engine: StubEngine, url: str) -> dict[str, str]:
    """The setting of a reference that was recorded on the sound engine."""
    with watched(home, engine, url) as one:
        rounds(one, 3)
        assert one.value("canary_recorded") == 0
        assert one.value("circuit_tokens_total", **ALL) == 0
    out = str(home / "reference")
    assert sidecar(["canary", "record", str(home / "archive"), "--out", out, "--rounds", "3"]) == 0
    return {"canary.reference": out}


@pytest.fixture
def engine() -> Iterator[tuple[StubEngine, str]]:
    made = StubEngine("a token")
    with made.running() as url:
        yield made, url


def another_head(states: States) -> States:
    """The one of the layer that the circuit does not read writes something else."""
    heads = states[LAYER].copy()
    heads[:, : WIDTH // HEADS] *= np.float32(0.5)
    return states | {LAYER: heads}


def scaled(where: Any, by: float) -> Callable[[States], States]:
    return lambda states: states | {where: states[where] * np.float32(by)}


def test_a_model_that_is_the_same_is_quiet_and_one_whose_head_is_scaled_by_a_tenth_has_moved(home, engine) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    with watched(home, stub, url, **more) as one:
        rounds(one, 2)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0
        assert one.value("canary_distance", tap_point=MLP.name) < 1
        stub.change = scaled(LAYER, 0.9)
        rounds(one, 4)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 1
        assert one.value("canary_moved", tap_point=LAYER.name) == 1
        assert one.value("canary_moved", tap_point=MLP.name) == 0
        assert one.value("canary_first_moved_info", tap_point=LAYER.name) == 1
        stub.change = lambda states: states
        rounds(one, 6)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0


def test_a_reference_that_is_recorded_while_it_runs_is_compared_with_from_the_next_round_on(home, engine) -> None:
    stub, url = engine
    out = str(home / "reference")
    with watched(home, stub, url, **{"canary.reference": out}) as one:
        rounds(one, 3)
        assert one.value("canary_recorded") == 0
        assert sidecar(["canary", "record", str(home / "archive"), "--out", out, "--rounds", "3"]) == 0
        rounds(one, 5)
        assert one.value("canary_recorded") == 1
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0
        stub.change = scaled(LAYER, 0.9)
        rounds(one, 7)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 1
        assert sidecar(["canary", "record", str(home / "archive"), "--out", out, "--rounds", "2"]) == 0
        rounds(one, 8)  # the model as it is now is what another reference was made of
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0


def test_in_projected_mode_circuits_alone_are_compared_and_no_tap_point_is_called_quiet(home, engine) -> None:
    stub, url = engine
    stub.projects = True
    more = recorded(home, stub, url)
    with watched(home, stub, url, **more) as one:
        rounds(one, 2)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0
        assert one.value("circuit_canary_distance", **CIRCUIT) < 5
        stub.change = scaled(LAYER, 0.9)
        rounds(one, 4)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 1
        names = ("stethoscope_canary_distance", "stethoscope_canary_moved", "stethoscope_canary_first_moved_info")
        assert not [series for series in one.client.series() if series.startswith(names)]


def test_an_engine_that_does_not_answer_is_missing_and_not_quiet(home, engine) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    with watched(home, stub, url, **more) as one:
        rounds(one, 1)
        stub.change = None
        rounds(one, 1, "partial")
        age = one.value("canary_age_seconds")
        one.clock.advance(1000.0)
        assert one.value("canary_age_seconds") >= age + 1000


def test_states_that_are_not_numbers_are_no_sign_of_health(home, engine) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    with watched(home, stub, url, **more) as one:
        rounds(one, 2)
        stub.change = lambda states: states | {LAYER: states[LAYER] * np.float32(1e30)}  # its energy overflows
        age = one.value("canary_age_seconds")
        rounds(one, 2, "partial")
        assert one.value("canary_rounds_total", outcome="whole") == 2
        assert one.value("canary_age_seconds") > age + 100
        shown = [name for name in one.client.series() if name.startswith("stethoscope_circuit_canary_")]
        assert not shown, "neither moved nor quiet"


@pytest.mark.parametrize("other", ["prompts", "engine"])
def test_a_reference_of_something_else_is_compared_with_nothing_and_it_is_said_of_what(home, engine, other) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    model = MODEL if other == "prompts" else replace(MODEL, engine="another/2")
    if other == "prompts":
        (home / "prompts").write_text("\n".join(f"another {number}" for number in range(8)))
    lines: list[str] = []
    with watched(home, stub, url, model, lines.append, **more) as one:
        stub.change = scaled(LAYER, 0.1)
        rounds(one, 3, "not_compared")
        assert one.value("canary_recorded") == 0
        assert one.value("canary_interval_seconds") == 100
        assert one.value("canary_rounds_total", outcome="whole") == 0
        shown = one.client.series()
        assert not [name for name in shown if "canary_age_seconds" in name or "canary_distance" in name]
    (said,) = [line for line in lines if "canaries_not_compared" in line]
    assert f"the reference differs in {other}:" in said


def test_a_verdict_ends_with_the_rounds_that_can_be_compared_and_comes_back_with_them(home, engine) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    path = Path(more["canary.reference"])
    kept, of_others = path.read_bytes(), list[Path]()
    for sent in sorted((home / "archive" / "canaries").iterdir()):
        found = read_round(sent)
        of_others.append(write_round(home / "others", Kept(replace(found.about, prompts="0" * 64), found.values), 9))
    with watched(home, stub, url, **more) as one:
        stub.change = scaled(LAYER, 0.9)
        rounds(one, 2)
        assert one.value("canary_recorded") == 1
        assert one.value("circuit_canary_moved", **CIRCUIT) == 1
        record(of_others, path)
        rounds(one, 2, "not_compared")
        assert one.value("canary_recorded") == 0
        shown = one.client.series()
        assert not [name for name in shown if name.startswith("stethoscope_circuit_canary_")]
        assert one.sidecar.keeper.canaries.says("going_on", 0) is Canaries.SILENT
        path.write_bytes(kept)
        rounds(one, 5)
        assert one.value("canary_recorded") == 1
        assert one.value("circuit_canary_moved", **CIRCUIT) == 1


def test_rows_that_somebody_sends_again_or_between_rounds_change_none_and_are_counted(home, engine) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    with watched(home, stub, url, **more) as one:
        rounds(one, 1)
        stub.again = scaled(LAYER, 0.1)
        rounds(one, 4)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0
        assert one.value("circuit_canary_distance", **CIRCUIT) < 5
        assert one.value("canary_rows_unused_total", reason="repeated") > 0
        stub.again = None
        rounds(one, 5)
        before = one.value("canary_rows_unused_total", reason="no_round")
        for route in ("canary-3", "canary-99"):
            stub.send(route, scaled(LAYER, 0.1)(stub.states("prompt 3")), canary=True)
        one.sidecar.keeper.look()
        assert one.value("canary_rows_unused_total", reason="no_round") == before + 2 * LAST
        rounds(one, 7)
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0


def test_whoever_does_not_know_the_token_is_traffic(home, engine) -> None:
    stub, url = engine
    (home / "token").write_text("a wrong one")
    with watched(home, stub, url) as one:
        one.clock.advance(101.0)
        ends = time.monotonic() + 10.0
        while stub.asked < 8:
            assert time.monotonic() < ends
            time.sleep(0.02)
        one.tick()
        assert one.value("circuit_tokens_total", **ALL) > 0
        assert one.value("canary_rounds_total", outcome="whole") == 0


def learned(home: Path) -> None:
    """A baseline of traffic that engages the circuit half of the time."""
    flags = {"circuits.archive": str(home / "learn"), "circuits.requests_are_sessions": True}
    with live(home, home / "artifacts", flags) as one:
        one.traffic(30, 0.5)
    sketches = sorted(str(path) for path in (home / "learn").glob("*.parquet"))
    assert probes(["baseline", "fit", *sketches, "--one-bucket", "--out", str(home / "artifacts" / "baseline")]) == 0


def diagnosed(one: Live, cause: str) -> None:
    """Wait until the alarm has its cause, whatever it is; it must be this one."""
    alarms = "stethoscope_circuit_alarms_total{"
    ends = time.monotonic() + 20.0
    while not any(float(value) for name, value in one.client.series().items() if name.startswith(alarms)):
        assert time.monotonic() < ends, one.client.series()
        time.sleep(0.05)
    assert one.value("circuit_alarms_total", cause=cause, **ALL) == 1


@pytest.mark.parametrize("flaw", ["nobody listens", "the engine answers 500", "the first of two fails"])
def test_rounds_from_before_an_alarm_know_nothing_of_it(home, engine, monkeypatch, flaw: str) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    learned(home)
    send, asked = Sender.send, itertools.count()

    def refused(sender: Sender, prompts: Sequence[str]) -> int:
        if flaw != "the first of two fails" or next(asked) == 0:
            raise ConnectionRefusedError
        return send(sender, prompts)

    with watched(home, stub, url, **more, **{"canary.every_s": 1e8, "circuits.diagnose_s": 1e8}) as one:
        rounds(one, 1)
        if flaw == "the engine answers 500":
            stub.change = None
        else:
            monkeypatch.setattr(Sender, "send", refused)
        one.traffic(8, 0.0, seed=2)
        diagnosed(one, "unknown")
    (path,) = (home / "archive").glob("*.json")
    assert read_record(path).diagnosis == "unknown"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda states: states, "traffic"),
        (scaled(LAYER, 0.5), "model"),
        (another_head, "both"),
    ],
)
def test_an_alarm_is_diagnosed_by_two_rounds_that_it_asks_for_itself(home, engine, change, cause: str) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    learned(home)
    # The clock runs an hour in a second here; the canaries do not.
    with watched(home, stub, url, **more, **{"canary.every_s": 1e8, "circuits.diagnose_s": 1e8}) as one:
        rounds(one, 1)
        stub.change = change
        one.traffic(8, 0.0, seed=2)
        diagnosed(one, cause)
        assert one.value("canary_rounds_total", outcome="whole") == 3
    (path,) = (home / "archive").glob("*.json")
    assert read_record(path).diagnosis == cause


@pytest.mark.parametrize(
    "unread",
    [
        lambda one: one.refused(not_a_number()),
        lambda one: one.send(overflowing(32, LAYER, MLP)),  # dropped: nothing in it can be read
        lambda one: one.send(overflowing(32, MLP)),  # read, but not by the circuit
    ],
    ids=["refused", "dropped", "not by the circuit"],
)
def test_an_alarm_of_which_a_third_could_not_be_read_is_about_the_data_however_quiet_the_canaries_are(
    home, engine, unread: Callable[[Live], object]
) -> None:
    stub, url = engine
    more = recorded(home, stub, url)
    learned(home)
    with watched(home, stub, url, **more, **{"canary.every_s": 1e8, "circuits.diagnose_s": 1e8}) as one:
        rounds(one, 1)
        one.traffic(8, 0.0, seed=2, also=lambda: unread(one))
        diagnosed(one, "data")
        assert one.value("circuit_canary_moved", **CIRCUIT) == 0
        assert one.value("canary_rounds_total", outcome="whole") == 3
    (path,) = (home / "archive").glob("*.json")
    assert read_record(path).diagnosis == "data"
