"""A real Prometheus scrapes a real metrics server by the configuration that is shipped."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from sidecar.export.http import MetricsServer
from sidecar.export.metric import Kind
from sidecar.export.metrics import MetricsCollector
from sidecar.export.table import METRICS
from sidecar.judge.tally import SCORE_EDGES, SHARE_EDGES, TallyBank
from sidecar.snapshot import Snapshot
from tests.export.conftest import REPO
from tests.export.examples import TRACE_ID, signal, snapshot
from tests.export.receivers import free_port
from tests.export.test_deploy import ALERTS

pytestmark = pytest.mark.process
START_S = 30.0
Values = npt.NDArray[np.float64]


class Prometheus:
    """One server of its own, with its data in a folder of the test."""

    def __init__(self, program: Path, folder: Path, *targets: str, features: str = "exemplar-storage") -> None:
        self._url = f"127.0.0.1:{free_port()}"
        text = (REPO / "deploy" / "prometheus" / "prometheus.yml").read_text()
        assert '"127.0.0.1:9464"' in text
        text = text.replace('"127.0.0.1:9464"', ", ".join(f'"{target}"' for target in targets))
        text = text.replace("interval: 5s", "interval: 1s").replace("scrape_timeout: 3s", "scrape_timeout: 1s")
        (folder / "prometheus.yml").write_text(text)
        (folder / "rules.yml").write_text((REPO / "deploy" / "prometheus" / "rules.yml").read_text())
        self._process = subprocess.Popen(
            [
                program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url}", f"--enable-feature={features}",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, what: str, **parameters: Any) -> Any:
        """The data of an answer, as soon as there is any."""
        deadline_s = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, "Prometheus ended"
            assert time.monotonic() < deadline_s, f"no data: {what} {parameters}"
            try:
                with urlopen(f"http://{self._url}/api/v1/{what}?{urlencode(parameters)}", timeout=5) as answer:
                    data = json.load(answer)["data"]
            except (URLError, ConnectionError):
                data = None
            if data and (not isinstance(data, dict) or data.get("result", True)):
                return data
            threading.Event().wait(0.1)

    def value(self, query: str) -> float:
        """The one number of an answer."""
        (sample,) = self.ask("query", query=query)["result"]
        return float(sample["value"][1])

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


class Exporter:
    """A sidecar's page, fed by the test."""

    def __init__(self) -> None:
        self._scores = TallyBank(SCORE_EDGES, 1)
        self._budget_use = TallyBank(SHARE_EDGES, 1)
        self._lock = threading.Lock()  # of the two above: a page shows all of what was observed, or nothing of it
        collector = MetricsCollector(self._snapshot, version="0.1.0")
        self.server = MetricsServer("127.0.0.1", 0, collector.render, max_connections=4, header_timeout_s=5.0)

    def observe(self, scores: Values, budget_use: Values) -> None:
        with self._lock:
            self._scores.add(np.zeros(len(scores), np.intp), scores)
            self._budget_use.add(np.zeros(len(budget_use), np.intp), budget_use)

    def _snapshot(self) -> Snapshot:
        with self._lock:
            one = signal(scores=self._scores.snapshot(0))
            return snapshot(signals=(one,), budget_use=self._budget_use.snapshot(0))


@pytest.fixture
def program(promtool_path: str) -> Path:
    return Path(promtool_path).with_name("prometheus")


@pytest.fixture
def exporters() -> Iterator[tuple[Exporter, Exporter]]:
    pair = (Exporter(), Exporter())
    for exporter in pair:
        exporter.server.start()
    yield pair
    for exporter in pair:
        exporter.server.stop()


@contextmanager
def scraping(
    program: Path, folder: Path, exporters: tuple[Exporter, Exporter], features: str
) -> Iterator[tuple[Prometheus, Values, Values]]:
    """A Prometheus that has seen both exporters before and after they observed, and what they observed."""
    random = np.random.default_rng(5)
    scores = np.array([random.beta(2, 5, 2000), random.beta(5, 2, 2000)])
    use = np.array([random.gamma(2.0, 0.2, 1000), random.gamma(2.0, 0.3, 1000)])
    targets = [f"127.0.0.1:{exporter.server.port}" for exporter in exporters]
    started = Prometheus(program, folder, *targets, features=features)
    try:
        started.ask("query", query="count(up == 1) == 2")
        for exporter, *observed in zip(exporters, scores, use, strict=True):
            exporter.observe(*observed)
        yield started, scores, use
    finally:
        started.stop()


@pytest.fixture
def prometheus(program: Path, tmp_path: Path) -> Iterator[Prometheus]:
    render = MetricsCollector(snapshot, version="0.1.0").render
    server = MetricsServer("127.0.0.1", 0, render, max_connections=4, header_timeout_s=5.0)
    server.start()
    started = Prometheus(program, tmp_path, f"127.0.0.1:{server.port}")
    yield started
    started.stop()
    server.stop()


def test_native_histograms_of_two_sidecars_merge_by_a_sum_of_rates(
    program: Path, tmp_path: Path, exporters: tuple[Exporter, Exporter]
) -> None:
    features = "exemplar-storage,native-histograms"
    with scraping(program, tmp_path, exporters, features) as (prometheus, scores, use):
        prometheus.ask("query", query=f"sum(histogram_count(stethoscope_probe_score)) == {scores.size}")
        for q in (0.1, 0.5, 0.9):
            merged = prometheus.value(f"histogram_quantile({q}, sum(rate(stethoscope_probe_score[1m])))")
            assert 2**-0.25 < merged / np.quantile(scores, q) < 2**0.25  # two native buckets: rate() extrapolates each
        assert prometheus.value("histogram_sum(sum(stethoscope_probe_score))") == pytest.approx(scores.sum())
        exemplar_time = {"start": 1_699_999_000, "end": 1_700_001_000}
        assert prometheus.ask("query_exemplars", query="stethoscope_probe_detections_total", **exemplar_time)
        assert "stethoscope_probe_score_bucket" not in prometheus.ask("label/__name__/values")
        over = {
            s["metric"]["instance"]: float(s["value"][1])
            for s in prometheus.ask("query", query=over_budget())["result"]
        }
        expected = {f"127.0.0.1:{e.server.port}": (u > 1).mean() for e, u in zip(exporters, use, strict=True)}
        assert over == pytest.approx(expected)


def test_the_classic_buckets_of_the_same_pages_are_there_for_a_prometheus_that_asks_for_text(
    program: Path, tmp_path: Path, exporters: tuple[Exporter, Exporter]
) -> None:
    with scraping(program, tmp_path, exporters, "exemplar-storage") as (prometheus, scores, use):
        prometheus.ask("query", query=f"sum(stethoscope_probe_score_count) == {scores.size}")
        for edge in SCORE_EDGES.classic:
            counted = prometheus.value(f'sum(stethoscope_probe_score_bucket{{le="{edge!r}"}})')
            assert counted == (scores <= edge).sum()
        merged = prometheus.value("histogram_quantile(0.9, sum by (le) (rate(stethoscope_probe_score_bucket[1m])))")
        bounds = np.array(SCORE_EDGES.classic)
        place = np.searchsorted(bounds, np.quantile(scores, 0.9))
        assert bounds[place - 1] <= merged <= bounds[place]
        over = {
            s["metric"]["instance"]: float(s["value"][1])
            for s in prometheus.ask("query", query=over_budget())["result"]
        }
        expected = {f"127.0.0.1:{e.server.port}": (u > 1).mean() for e, u in zip(exporters, use, strict=True)}
        assert over == pytest.approx(expected)


def over_budget() -> str:
    """What the rule of the budget asks, whichever kind of histogram there is."""
    (group,) = yaml.safe_load((REPO / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    return next(str(rule["expr"]) for rule in group["rules"] if rule["alert"] == "StethoscopeOverBudget")


def test_prometheus_takes_every_metric_the_exemplars_and_the_rules(prometheus: Prometheus) -> None:
    blind = prometheus.ask("query", query="stethoscope_blind")
    assert {sample["value"][1] for sample in blind["result"]} == {"0"}
    assert prometheus.ask("query", query='up{job="stethoscope"}')["result"][0]["value"][1] == "1"
    names = set(prometheus.ask("label/__name__/values"))
    for metric in METRICS:
        assert (metric.name + "_bucket" if metric.kind is Kind.HISTOGRAM else metric.name) in names
    exemplars = prometheus.ask(
        "query_exemplars", query="stethoscope_probe_request_score_bucket", start=1_699_999_000, end=1_700_001_000
    )
    assert {e["labels"]["trace_id"] for series in exemplars for e in series["exemplars"]} == {TRACE_ID}
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["name"] for rule in group["rules"]} == ALERTS
    assert not [rule for rule in group["rules"] if rule.get("lastError")]
