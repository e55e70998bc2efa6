"""The demo's circuit as a newcomer runs it: what is planted raises its one alert, with its diagnosis, and a plain demo none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.circuits.toy_engine import free_port
from tests.export.conftest import REPO, Promtool, promtool, promtool_path
from tests.service_fixtures import private_folder

__all__ = ["promtool", "promtool_path"]
pytestmark = [pytest.mark.model, pytest.mark.process, pytest.mark.timeout(560)]
PATIENCE_S = 500.0
SCRAPE_S = 1.0
QUIET_TICKS = 4


@dataclass(slots=True)
class Demo:
    process: subprocess.Popen[str]
    port: int
    summary: Path
    page: str = ""  # the newest that was scraped

    def scrape(self) -> None:
        """Before it serves and after it has ended, the page stays what it was."""
        with (
            contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer,
        ):
            self.page = answer.read().decode()

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
    smollm2, plant: str, alert: str, diagnosis: str, promtool: Promtool, tmp_path: Path
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
    assert firing(one.page, promtool, tmp_path) == {f"Stethoscope{alert}"}


def test_a_demo_in_which_nothing_is_planted_raises_nothing(smollm2, promtool: Promtool, tmp_path: Path) -> None:
    ticks = 'stethoscope_circuits_ticks_total{outcome="closed"}'
    threshold = 'stethoscope_circuit_evidence_threshold_ratio{circuit="induction",slice="all"}'
    with demo() as one:
        one.until(lambda: one.value(threshold) is not None and one.value("stethoscope_canary_recorded") == 1)
        quiet = (one.value(ticks) or 0) + QUIET_TICKS
        one.until(lambda: (one.value(ticks) or 0) >= quiet)
        page = one.page
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
    assert firing(page, promtool, tmp_path) == set()


CIRCUIT_ALERTS = [
    f"StethoscopeCircuit{name}"
    for name in (
        "ModelChanged",
        "Activity",
        "UnseenTraffic",
        "SpecStale",
        "NoData",
        "CanaryMissing",
        "FalseAlarmBudget",
    )
]


def firing(page: str, promtool: Promtool, folder: Path) -> set[str]:
    """Of the alerts about circuits those that the shipped rules fire on this page, if it stays like that for two minutes."""
    series = [
        {"series": _labelled(name), "values": f"{value}x8"}
        for name, _, value in (line.rpartition(" ") for line in page.splitlines())
        if name.startswith(("stethoscope_c", "stethoscope_deploy_window")) and "_bucket{" not in name
    ]
    assert series
    found = set()
    for alert in CIRCUIT_ALERTS:
        fires, silent = (_holds(series, alert, samples, promtool, folder) for samples in ([alert], []))
        assert fires != silent, alert  # promtool understood the page
        found |= {alert} if fires else set()
    return found


def _labelled(name: str) -> str:
    head, brace, labels = name.partition("{")
    return f'{head}{{job="j",instance="i",{labels}' if brace else f'{head}{{job="j",instance="i"}}'


def _holds(series: list[dict[str, str]], alert: str, samples: list[str], promtool: Promtool, folder: Path) -> bool:
    """Whether just these alerts of that name fire."""
    wanted = f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{alert}"}})'
    expected = [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in samples]
    test = {"expr": wanted, "eval_time": "2m", "exp_samples": expected}
    case = {"interval": "15s", "input_series": series, "promql_expr_test": [test]}
    rules = str(REPO / "deploy" / "prometheus" / "rules.yml")
    path = folder / "page.json"  # which is YAML, too
    path.write_text(json.dumps({"rule_files": [rules], "evaluation_interval": "15s", "tests": [case]}))
    return promtool("test", "rules", str(path)).returncode == 0
