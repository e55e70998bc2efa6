from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import Config
from sidecar.export.metric import PREFIX, Kind
from sidecar.export.reference import markdown
from sidecar.export.table import BY_NAME, METRICS
from sidecar.judge.tally import SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES
from sidecar.snapshot import Rung
from tests.export.conftest import NO_APT, REPO, Promtool

PROMETHEUS = REPO / "deploy" / "prometheus"
RULES_TEST, CIRCUITS_TEST, _ = TESTS = ("rules_test.yml", "circuit_rules_test.yml", "circuit_ticks_rules_test.yml")
SCRIPT = REPO / "deploy" / "get_promtool.sh"
ALERTS = {
    f"Stethoscope{what}"
    for what in ("Blind", "LedgerMismatch", "Degraded", "Off", "OverBudget", "ProjectionWrong", "CountsStale")
} | {
    f"StethoscopeCircuit{what}"
    for what in (
        "ModelChanged",
        "Activity",
        "UnseenTraffic",
        "SpecStale",
        "NoData",
        "CanaryMissing",
        "FalseAlarmBudget",
        "Losses",
    )
}


def read(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in read("rules.yml")["groups"] for rule in group["rules"]]


def test_promtool_accepts_the_configuration_and_the_rules(promtool: Promtool) -> None:
    checked = promtool("check", "config", "deploy/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    checked = promtool("check", "rules", "--lint-fatal", "deploy/prometheus/rules.yml")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("tests", TESTS)
def test_the_rules_fire_as_their_tests_say(promtool: Promtool, tests: str) -> None:
    tested = promtool("test", "rules", f"deploy/prometheus/{tests}")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(stethoscope_blind) == 1", "(stethoscope_blind) == 2"),
        ("!= 0", "> 1e9"),
        ("for: 1m", "for: 1s"),
        ("keep_firing_for: 10m", "keep_firing_for: 1s"),
        ('up{job="stethoscope"} == 0', "vector(0) > 1"),
        ('rung!~"full|off"', 'rung!="full"'),
        ('max without (rung) (stethoscope_rung{rung!~"full|off"})', 'stethoscope_rung{rung!~"full|off"}'),
        ("for: 5m", "for: 4m"),
        ('rung="off"}) == 1\n        for: 1m', 'rung="off"}) == 1\n        for: 1s'),
        ('le="1.0"', 'le="2.0"'),
        ("> 0.01", "> 0.005"),
        ("\n        for: 10m", "\n        for: 9m"),
        ("rows_wrong_total[10m]", "rows_checked_total[10m]"),
        ("counts_age_seconds > 10", "counts_age_seconds >= 10"),
    ],
)
def test_a_rule_that_is_changed_fails_its_test(promtool: Promtool, tmp_path: Path, right: str, wrong: str) -> None:
    assert fails(promtool, tmp_path, RULES_TEST, right, wrong)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(stethoscope_canary_moved or stethoscope_circuit_canary_moved) == 1", "(stethoscope_canary_moved) == 2"),
        ("            unless on (job, instance) stethoscope_deploy_window == 1\n", ""),
        ('circuit_alarm{severity="page"} == 1', 'circuit_alarm{severity="ticket"} == 1'),
        ('circuit_alarm{severity="ticket"} == 1', 'circuit_alarm{severity="page"} == 1'),
        (
            'severity="page"} == 1\n            unless on (job, instance)\n              max by (job, instance)',
            'severity="page"} == 1\n            unless on (job, instance)\n              2 * max by (job, instance)',
        ),
        (
            "stethoscope_circuit_alarm == 1\n              and",
            'stethoscope_circuit_alarm{severity="page"} == 1\n              and',
        ),
        (
            "stethoscope_circuit_alarm == 1\n              and",
            'stethoscope_circuit_alarm{severity="ticket"} == 1\n              and',
        ),
        ("              and on (job, instance) stethoscope_deploy_window == 1\n", ""),
        ('measure="spe"', 'measure="t2"'),
        ("[30m])) > 0.03", "[30m])) > 0.02"),
        ("[30m])) > 0.03", "[30m])) > 0.04"),
        ('unusual_total{measure="spe"}[30m])) >= 10', 'unusual_total{measure="spe"}[30m])) >= 8'),
        ("            unless on (job, instance, circuit) stethoscope_circuit_alarm == 1\n", ""),
        ("\n        for: 15m", "\n        for: 5m"),
        ('state="stale"', 'state="validated"'),
        ("30 * stethoscope_circuits_tick_seconds", "31 * stethoscope_circuits_tick_seconds"),
        ("canary_interval_seconds, 900)", "canary_interval_seconds, 9000)"),
        ("canary_interval_seconds, 900)", "canary_interval_seconds, 90)"),
        ("clamp_min(3 * stethoscope_canary", "clamp_min(2 * stethoscope_canary"),
        ("clamp_min(3 * stethoscope_canary", "clamp_min(4 * stethoscope_canary"),
        ("and on (job, instance) stethoscope_canary_recorded == 1", ""),
        ("stethoscope_canary_configured == 1", "stethoscope_canary_configured >= 0"),
        ('cause!="model"', 'cause!="none"'),
        ("3 + 3 *", "4 + 3 *"),
    ],
)
def test_a_rule_about_circuits_that_is_changed_fails_its_test(
    promtool: Promtool, tmp_path: Path, right: str, wrong: str
) -> None:
    assert fails(promtool, tmp_path, CIRCUITS_TEST, right, wrong)


def fails(promtool: Promtool, folder: Path, tests: str, right: str, wrong: str) -> bool:
    """Whether the tests of those rules that a change makes others notice it. Rules and tests that it leaves alone are left out."""
    text = (PROMETHEUS / "rules.yml").read_text()
    assert right in text
    made = yaml.safe_load(text.replace(right, wrong, 1))["groups"]
    changed = alerts([rule for group in made for rule in group["rules"] if rule not in rules()])
    assert changed
    assert run_tests(promtool, folder / "sound", tests, read("rules.yml")["groups"], changed)
    return not run_tests(promtool, folder / "changed", tests, made, changed)


def alerts(some: list[dict[str, Any]]) -> set[str]:
    return {rule["alert"] for rule in some}


def run_tests(promtool: Promtool, folder: Path, tests: str, groups: list[dict[str, Any]], some: set[str]) -> bool:
    """Whether the alerts of these names pass what the tests say of them."""
    folder.mkdir()
    told = yaml.load((PROMETHEUS / tests).read_text(), yaml.BaseLoader)  # words: a series of ``0x400`` is no number
    for one in told["tests"]:
        one["alert_rule_test"] = [each for each in one["alert_rule_test"] if each["alertname"] in some]
    told["tests"] = [one for one in told["tests"] if one["alert_rule_test"]]
    assert told["tests"]
    kept = [{**group, "rules": [rule for rule in group["rules"] if rule["alert"] in some]} for group in groups]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [group for group in kept if group["rules"]]}))
    (folder / tests).write_text(yaml.safe_dump(told))
    return promtool("test", "rules", str(folder / tests)).returncode == 0


def test_every_metric_that_a_rule_names_is_in_the_table_with_the_labels_that_it_uses() -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    named = {_family_of(name) for name in re.findall(rf"\b{PREFIX}[a-z_]+[a-z]\b", text)}
    assert {f"{PREFIX}blind", f"{PREFIX}step_budget_use_ratio"} <= named
    assert named <= BY_NAME.keys()
    assert "tap_point" in BY_NAME[f"{PREFIX}blind"].label_names
    for name in named:
        if name.endswith(("dropped_total", "rejected_total")):
            assert BY_NAME[name].label_names == ("reason",)
    assert BY_NAME[f"{PREFIX}rung"].label_names == ("rung",)
    assert set(re.findall(r'\brung="(\w+)"', text)) <= set(Rung)


def test_the_budget_rule_asks_for_a_bucket_that_the_page_has() -> None:
    (bound,) = set(re.findall(r'\ble="([^"]*)"', (PROMETHEUS / "rules.yml").read_text()))
    assert bound in {repr(edge) for edge in SHARE_EDGES.classic}
    assert 1.0 in SHARE_EDGES.fine  # an edge of the native buckets too: a power of 2 above the smallest
    assert SHARE_EDGES.smallest < 0 < SHARE_EDGES.largest


def _family_of(name: str) -> str:
    """The name in the table: that of a histogram without what its series add to it."""
    bare = name.removesuffix("_bucket").removesuffix("_count")
    return bare if bare in BY_NAME and BY_NAME[bare].kind is Kind.HISTOGRAM else name


def test_every_metric_that_a_rules_test_feeds_is_in_the_table() -> None:
    for test in (test for name in TESTS for test in read(name)["tests"]):
        for series in test["input_series"]:
            name, labels = series["series"].split("{")
            used = set(re.findall(r'(\w+)="', labels)) - {"job", "instance", "le"}
            assert name == "up" or used <= set(BY_NAME[_family_of(name)].label_names), series


def test_every_alert_says_how_bad_it_is_what_it_rests_on_and_what_to_do_first() -> None:
    assert {rule["alert"] for rule in rules()} == ALERTS
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "description", "evidence", "first_step"} <= rule["annotations"].keys()
    tests = [test for name in TESTS for test in read(name)["tests"]]
    tested = {alert["alertname"] for test in tests for alert in test["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in rules()}


def test_the_scrape_goes_where_the_sidecar_listens_by_default_under_the_job_that_the_rules_know() -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    metrics = Config().metrics
    assert job["static_configs"][0]["targets"] == [f"{metrics.host}:{metrics.port}"]
    assert f'up{{job="{job["job_name"]}"}}' in (PROMETHEUS / "rules.yml").read_text()


def test_the_scrape_has_room_for_every_series_of_the_table() -> None:
    buckets = 1 + max(len(edges.classic) for edges in (SCORE_EDGES, SECONDS_EDGES, SHARE_EDGES))
    lines = sum(metric.cap * (buckets + 2 if metric.kind is Kind.HISTOGRAM else 1) for metric in METRICS)
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert 2 * lines < job["sample_limit"]
    assert (
        max(len(metric.labels) for metric in METRICS) + len(("__name__", "job", "instance", "le")) <= job["label_limit"]
    )


def test_the_reference_of_the_metrics_is_current() -> None:
    current = (REPO / "docs" / "metrics.md").read_text()
    assert current == markdown(), "run: python -m sidecar.export.reference > docs/metrics.md"


def test_promtool_is_found_in_a_cache_whose_path_has_a_space_and_the_second_run_fetches_nothing(
    promtool_path: str, tmp_path: Path
) -> None:
    cache = tmp_path / "a cache"
    first = run_script(STETHOSCOPE_CACHE=str(cache), PATH=os.environ["PATH"])
    assert first.returncode == 0, first.stderr
    tool = Path(first.stdout.strip())
    assert tool.is_relative_to(cache)
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    known = subprocess.run([promtool_path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert version == known
    assert [entry.name for entry in cache.iterdir()] == ["promtool"]
    again = run_script(STETHOSCOPE_CACHE=str(cache), PATH="/nowhere")
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_without_apt_the_script_says_so_with_its_own_status(tmp_path: Path) -> None:
    ended = run_script(STETHOSCOPE_CACHE=str(tmp_path / "cache"), PATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (NO_APT, "")
    assert "apt-get is not here" in ended.stderr


def run_script(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", SCRIPT], env=env, capture_output=True, text=True, timeout=110, check=False)
