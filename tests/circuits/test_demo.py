"""The demo's circuit as a newcomer runs it: what is planted raises its one alert, with its diagnosis, and a plain demo none."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.circuits.toy_engine import free_port
from tests.circuits.zoo.alerts import METRICS, Series, fired
from tests.export.conftest import promtool_path
from tests.service_fixtures import private_folder

__all__ = ["promtool_path"]
pytestmark = [pytest.mark.model, pytest.mark.process, pytest.mark.timeout(560)]
PATIENCE_S = 500.0
SCRAPE_S = 1.0
QUIET_TICKS = 4
ALL = 'circuit="induction",slice="all"'
THRESHOLD = f"circuit_evidence_threshold_ratio{{{ALL}}}"


@dataclass(slots=True)
class Demo:
    process: subprocess.Popen[str]
    port: int
    summary: Path
    page: str = ""  # the newest that was scraped
    scrapes: list[tuple[float, dict[str, float]]] = field(default_factory=list)  # when, and what rules read of the page

    def scrape(self) -> None:
        """Before it serves and after it has ended, the page stays what it was."""
        with (
            contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer,
        ):
            self.page = answer.read().decode()
            self.scrapes.append((time.monotonic(), read_by_rules(self.page)))

    def until(self, ready: Callable[[], bool]) -> None:
        """Scrape it as Prometheus would, until then; it may not have ended by then."""
        ends = time.monotonic() + PATIENCE_S
        while not ready():
            assert time.monotonic() < ends, self.page[-4000:]
            try:
                self.process.wait(SCRAPE_S)
            except subprocess.TimeoutExpired:
                self.scrape()
            else:
                assert ready(), self.process.communicate()

    def value(self, name: str) -> float | None:
        """Of one series by its name and labels; None if it is not there."""
        return next(
            (float(line.rpartition(" ")[2]) for line in self.page.splitlines() if line.startswith(f"{name} ")), None
        )

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.summary.read_text())
        return told


@contextmanager
def demo(*arguments: str) -> Iterator[Demo]:
    with private_folder() as home:
        port, summary = free_port(), home / "out.json"
        command = [sys.executable, "-m", "sidecar.cli", "demo", "--summary", str(summary), *arguments]
        command += ["--port", str(free_port()), "--metrics-port", str(port)]
        env = os.environ | {"TMPDIR": str(home)}
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home
        ) as process:
            try:
                yield Demo(process, port, summary)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.communicate(timeout=100)


@pytest.mark.parametrize(
    ("plant", "alert", "diagnosis"),
    [("ablation", "CircuitModelChanged", "model"), ("traffic", "CircuitActivity", "traffic")],
)
def test_what_is_planted_raises_its_one_alert_with_its_diagnosis_and_nothing_else(
    smollm2, plant: str, alert: str, diagnosis: str, promtool_path: str, tmp_path: Path
) -> None:
    with demo("--plant", plant) as one:
        one.until(lambda: one.process.poll() is not None)
        output, _ = one.process.communicate()
        assert one.process.returncode == 0, output
        got = one.told()
    assert (got["planted"], got["as_planted"]) == (plant, True)
    (raised,) = got["alerts"]
    assert (raised["name"], raised["diagnosis"]) == (alert, diagnosis)
    assert 0 < raised["after_plant_s"] < 300
    (alarm,) = got["alarms"]
    assert (alarm["circuit"], alarm["diagnosis"], alarm["leans"]) == ("induction", diagnosis, "less")
    assert list(got["phases"]) == ["learning", "armed", "planted", "alarm"]
    assert got["circuits"]["induction"]["canary_moved"] == (plant == "ablation")
    assert f"ALERT {alert}" in output
    assert "a toy reference" in output
    run = every_second(one.scrapes)
    assert fired(promtool_path, [run], tmp_path, 1) == [(alert,)]
    assert fired(promtool_path, [armed(run)], tmp_path, 1, at_once=True) == [(alert,)]


def test_a_demo_in_which_nothing_is_planted_raises_nothing(smollm2, promtool_path: str, tmp_path: Path) -> None:
    ticks = 'stethoscope_circuits_ticks_total{outcome="closed"}'
    with demo() as one:
        one.until(
            lambda: one.value(f"stethoscope_{THRESHOLD}") is not None and one.value("stethoscope_canary_recorded") == 1
        )
        quiet = (one.value(ticks) or 0) + QUIET_TICKS
        one.until(lambda: (one.value(ticks) or 0) >= quiet)
        one.process.send_signal(signal.SIGINT)
        output, _ = one.process.communicate(timeout=100)
        assert one.process.returncode == 0, output
        got = one.told()
    assert (got["alerts"], got["alarms"], got["as_planted"]) == ([], [], True)
    assert list(got["phases"])[:1] == ["learning"]
    told = got["circuits"]["induction"]
    assert 0.2 < told["engaged"] / told["tokens"] < 0.9
    assert 0 <= told["evidence"] < told["threshold"]
    assert 0 <= told["canary_distance"] < 5
    assert got["reference"]["run_length_s"] == 43_200 * 5
    run = every_second(one.scrapes)
    assert fired(promtool_path, [run], tmp_path, 1) == [()]
    sound = armed(run)
    assert fired(promtool_path, [sound, *map(partial(unsound, sound), UNSOUND)], tmp_path, 1, at_once=True) == [
        (),
        *((alert,) for alert in UNSOUND),
    ]


# What makes a sound page unsound for each alert: these series are so much, and grow by so much a second.
UNSOUND = {
    "CircuitModelChanged": (r"circuit_canary_moved\{.*", 1.0, 0.0),
    "CircuitActivity": (f'circuit_alarm{{{ALL},severity="ticket",cause="traffic",leans="less"}}', 1.0, 0.0),
    "CircuitUnseenTraffic": (r'circuit_tokens_unusual_total\{.*measure="spe".*', 0.0, 100.0),
    "CircuitSpecStale": (r'circuit_state\{.*state="stale".*', 1.0, 0.0),
    "CircuitNoData": (r"circuit_silent_seconds\{.*", 151.0, 0.0),
    "CircuitCanaryMissing": ("canary_recorded", 0.0, 0.0),
    "CircuitFalseAlarmBudget": (r'circuit_alarms_total\{.*cause="unknown".*', 0.0, 50.0),
    "CircuitLosses": (r'circuits_archive_rows_total\{outcome="lost"\}', 0.0, 1.0),
}


def unsound(sound: Series, alert: str) -> Series:
    which, value, slope = UNSOUND[alert]
    names = [name for name in sound.names() if re.fullmatch(which, name)] or [which]
    return Series([{**one, **dict.fromkeys(names, value + slope * at)} for at, one in enumerate(sound.scrapes)])


def read_by_rules(page: str) -> dict[str, float]:
    series = (line.rpartition(" ") for line in page.splitlines() if line.startswith("stethoscope_"))
    named = ((name.removeprefix("stethoscope_"), value) for name, _, value in series)
    return {name: float(value) for name, value in named if name.partition("{")[0] in METRICS}


def every_second(scrapes: list[tuple[float, dict[str, float]]]) -> Series:
    """Of each second the newest scrape that there was."""
    begin, made, at = scrapes[0][0], Series(), 0
    for second in range(math.ceil(scrapes[-1][0] - begin) + 1):
        while at + 1 < len(scrapes) and scrapes[at + 1][0] <= begin + second:
            at += 1
        made.add(scrapes[at][1])
    return made


def armed(run: Series) -> Series:
    """From where it has learned what is usual: before, canaries are compared with nothing."""
    first = next(at for at, one in enumerate(run.scrapes) if one.get("canary_recorded") == 1 and THRESHOLD in one)
    return Series(run.scrapes[first:])
