"""A real Prometheus scrapes a real metrics server by the configuration that is shipped."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from sidecar.export.http import MetricsServer
from sidecar.export.metrics import MetricsCollector
from sidecar.export.table import METRICS, Kind
from tests.export.conftest import REPO
from tests.export.examples import TRACE_ID, snapshot
from tests.export.receivers import free_port

pytestmark = pytest.mark.process
START_S = 30.0


class Prometheus:
    """One server of its own, with its data in a folder of the test."""

    def __init__(self, program: Path, folder: Path, target: str) -> None:
        self._url = f"127.0.0.1:{free_port()}"
        text = (REPO / "deploy" / "prometheus" / "prometheus.yml").read_text()
        assert "127.0.0.1:9464" in text
        text = text.replace("127.0.0.1:9464", target).replace("interval: 5s", "interval: 1s")
        (folder / "prometheus.yml").write_text(text.replace("scrape_timeout: 3s", "scrape_timeout: 1s"))
        (folder / "rules.yml").write_text((REPO / "deploy" / "prometheus" / "rules.yml").read_text())
        self._process = subprocess.Popen(
            [
                program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url}", "--enable-feature=exemplar-storage",
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

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


@pytest.fixture
def prometheus(promtool_path: str, tmp_path: Path) -> Iterator[Prometheus]:
    server = MetricsServer(
        "127.0.0.1",
        0,
        MetricsCollector(snapshot, version="0.1.0").render,
        max_connections=4,
        header_timeout_s=5.0,
    )
    server.start()
    started = Prometheus(Path(promtool_path).with_name("prometheus"), tmp_path, f"127.0.0.1:{server.port}")
    yield started
    started.stop()
    server.stop()


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
    assert {rule["name"]: rule["health"] for rule in group["rules"]}.keys() == {
        "StethoscopeBlind",
        "StethoscopeLedgerMismatch",
    }
    assert not [rule for rule in group["rules"] if rule.get("lastError")]
