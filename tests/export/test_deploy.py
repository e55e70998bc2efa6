from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import Config
from sidecar.export.reference import markdown
from sidecar.export.table import BY_NAME, METRICS, PREFIX, Kind
from tests.export.conftest import NO_APT, REPO, Promtool

PROMETHEUS = REPO / "deploy" / "prometheus"
SCRIPT = REPO / "deploy" / "get_promtool.sh"
SUFFIXES = ("_bucket", "_sum", "_count")


def read(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in read("rules.yml")["groups"] for rule in group["rules"]]


def test_promtool_accepts_the_configuration_and_the_rules(promtool: Promtool) -> None:
    checked = promtool("check", "config", "deploy/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    checked = promtool("check", "rules", "--lint-fatal", "deploy/prometheus/rules.yml")
    assert checked.returncode == 0, checked.stderr


def test_the_rules_fire_as_their_tests_say(promtool: Promtool) -> None:
    tested = promtool("test", "rules", "deploy/prometheus/rules_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("change", ["== 1", "!= 0", "for: 1m", "keep_firing_for: 10m", 'up{job="stethoscope"} == 0'])
def test_a_rule_that_is_changed_fails_its_test(promtool: Promtool, tmp_path: Path, change: str) -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    assert change in text
    wrong = {"== 1": "== 2", "!= 0": "> 1e9", "for: 1m": "for: 1s", "keep_firing_for: 10m": "keep_firing_for: 1s"}
    (tmp_path / "rules.yml").write_text(text.replace(change, wrong.get(change, "vector(0) > 1"), 1))
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    assert promtool("test", "rules", str(tmp_path / "rules_test.yml")).returncode != 0


def test_every_metric_that_a_rule_names_is_in_the_table_with_the_labels_that_it_uses() -> None:
    text = (PROMETHEUS / "rules.yml").read_text()
    named = set(re.findall(rf"\b{PREFIX}[a-z_]+[a-z]\b", text)) - {"stethoscope_tokens_unseen_total"}
    assert f"{PREFIX}blind" in named
    assert named <= BY_NAME.keys()
    assert "tap_point" in BY_NAME[f"{PREFIX}blind"].label_names
    for name in named:
        if name.endswith(("dropped_total", "rejected_total")):
            assert BY_NAME[name].label_names == ("reason",)


def test_every_metric_that_a_rules_test_feeds_is_in_the_table() -> None:
    for test in read("rules_test.yml")["tests"]:
        for series in test["input_series"]:
            name, labels = series["series"].split("{")
            used = set(re.findall(r'(\w+)="', labels)) - {"job", "instance"}
            assert name == "up" or used <= set(BY_NAME[name].label_names), series


def test_every_alert_says_how_bad_it_is_what_it_rests_on_and_what_to_do_first() -> None:
    assert {rule["alert"] for rule in rules()} == {"StethoscopeBlind", "StethoscopeLedgerMismatch"}
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "description", "evidence", "first_step"} <= rule["annotations"].keys()
    tested = {alert["alertname"] for test in read("rules_test.yml")["tests"] for alert in test["alert_rule_test"]}
    assert tested == {rule["alert"] for rule in rules()}


def test_the_scrape_goes_where_the_sidecar_listens_by_default_under_the_job_that_the_rules_know() -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    metrics = Config().metrics
    assert job["static_configs"][0]["targets"] == [f"{metrics.host}:{metrics.port}"]
    assert f'up{{job="{job["job_name"]}"}}' in (PROMETHEUS / "rules.yml").read_text()


def test_the_scrape_has_room_for_every_series_of_the_table() -> None:
    buckets = 19  # the finest histogram of the pipeline, with +Inf
    lines = sum(metric.cap * (buckets + 2 if metric.kind is Kind.HISTOGRAM else 1) for metric in METRICS)
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert lines < job["sample_limit"]
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
