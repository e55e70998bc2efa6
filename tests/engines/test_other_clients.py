"""Clients that are none of ours, as the page about other engines has them, and a real sidecar."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson

from probes.smollm2 import cache_folder
from probes.whole import whole_folder
from tests.builders import wire_model
from tests.engines.product import ROOT
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder, write_artifacts

NODE = ROOT / "docs" / "examples" / "node"
INSTALL_S, RUN_S = 300.0, 60.0
FLAGGED = {"requestId": "loud", "action": "ACTION_FLAG"}


@pytest.fixture
def process() -> Iterator[Process]:
    with private_folder() as home, Process(home, write_artifacts(home), "--set", "listen.reflection=true") as process:
        process.event("started")
        yield process


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a tree like ours, with what its lock names, installed once and kept in the cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node here: the worked client was not run")
    lock = (NODE / "package-lock.json").read_text()
    modules = whole_folder(cache_folder() / "engines" / "node-client", lock, _install)
    tree = tmp_path_factory.mktemp("checkout")
    there = shutil.copytree(NODE, tree / NODE.relative_to(ROOT), ignore=shutil.ignore_patterns("node_modules"))
    (there / "node_modules").symlink_to(modules / "node_modules")
    (tree / "protos").symlink_to(ROOT / "protos")
    return there


def _install(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, folder)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder, check=True, capture_output=True, timeout=INSTALL_S,
    )  # fmt: skip


def test_the_client_in_node_is_scored_seen_whole_and_leaves_with_a_goodbye(example: Path, process: Process) -> None:
    (example / "model.json").write_text(MessageToJson(wire_model()))
    done = subprocess.run(
        ["node", "client.mjs", process.address, "model.json"],
        cwd=example, check=False, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["outcome"] for one in results] == ["OUTCOME_SCORED"] * 2
    for result in results:
        verdicts = {one["requestId"]: one for one in result["verdicts"]}
        assert verdicts["calm"]["action"] == "ACTION_ALLOW"
        assert {name: verdicts["loud"][name] for name in FLAGGED} == FLAGGED
        assert [one["name"] for one in verdicts["loud"]["signals"]] == ["first"]
    with Client(process) as client:
        now = client.status()
        assert [(one.expected, one.seen, one.blind) for one in now.coverage] == [(7, 7, False)]
        assert (now.step_batches.scored, now.rows.scored, now.engines) == (2, 7, 0)
        assert float(client.series()['stethoscope_probe_request_score_count{probe="first"}']) == 2


def test_what_the_page_says_of_buf_curl_is_so(process: Process) -> None:
    page = (ROOT / "docs" / "engines" / "other.md").read_text()
    (script,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    socket = process.address.removeprefix("unix:")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where buf is installed
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "SOCKET": socket, "PATH": path}, check=False, capture_output=True, text=True, timeout=RUN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    registered, observed, status = _objects(done.stdout)
    assert registered["control"]["tapPoints"] == [{"layer": 1, "site": "SITE_RESID_POST"}]
    assert {one["evidence"] for one in registered["artifacts"]} == {"stale"}
    assert observed["result"]["outcome"] == "OUTCOME_SCORED"
    assert observed["result"]["verdicts"][0]["action"] == "ACTION_ALLOW", "stale signals are shown and never act"
    assert status["rows"]["scored"] == "2"
    assert {one["name"] for one in status["signals"] if one["readings"] == "2"} >= {"first", "second"}


def _objects(text: str) -> list[Any]:
    """JSON texts, one behind the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        one, at = decoder.raw_decode(text, at)
        found.append(one)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found
