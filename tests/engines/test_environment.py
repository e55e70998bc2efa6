"""What a user's one command does to an environment with vLLM in it, and what it leaves there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.environment import HERE, VLLM, Environment
from tests.engines.product import PACKAGES, ROOT, build_wheel

BESIDE = {"pip", "stethoscope", "torch", "vllm"}  # "vllm" is a name without files
READ = """
import json
from importlib.metadata import distributions, files, requires
print(json.dumps({
    "versions": {one.name: one.version for one in distributions()},
    "base": [one for one in requires("stethoscope") if "extra ==" not in one],
    "files": [str(one) for one in files("stethoscope")],
}))
"""


@pytest.fixture(scope="module")
def installed(vllm: Environment) -> dict[str, object]:
    return json.loads(vllm.run("-c", READ))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_our_package_beside_vllm_changes_none_of_its_pins(installed):
    pins = dict(line.split("==") for line in VLLM.lock.read_text().splitlines() if "==" in line)
    wanted = {_plain(name): version for name, version in pins.items()}
    found = {_plain(name): version for name, version in installed["versions"].items()}
    assert {name: version for name, version in found.items() if name not in BESIDE} == wanted
    assert found.keys() >= BESIDE


def test_pip_finds_everything_that_our_package_needs_already_there(vllm, installed, tmp_path):
    """Its resolver, asked for our requirements as it is by ``pip install``, would add and change nothing."""
    assert len(installed["base"]) == 4
    report = tmp_path / "report.json"
    vllm.run("-m", "pip", "install", "--dry-run", "--quiet", "--report", str(report), *installed["base"])
    assert json.loads(report.read_text())["install"] == []


def test_every_module_of_the_checkout_is_installed_and_is_not_the_checkout(vllm, installed):
    sources = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {one for one in installed["files"] if one.endswith(".py")} == sources
    where = vllm.run("-c", "import sidecar; print(sidecar.__file__)")
    assert Path(where.strip()).is_relative_to(vllm.folder)


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_uninstall_leaves_nothing_behind(vllm, tmp_path):
    """In an environment of its own, after our modules were imported there, which writes beside them."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    own = Environment(tmp_path)
    before = _tree(tmp_path / "venv")
    (tmp_path / "work").mkdir()
    wheel = build_wheel(vllm.python, tmp_path / "work")
    pip = ("-m", "pip", "--python", str(own.python))
    vllm.run(*pip, "install", "--quiet", "--no-deps", "--no-compile", str(wheel))
    libraries = vllm.run("-c", "import grpc, pathlib; print(pathlib.Path(grpc.__file__).parents[1])").strip()
    use = "import sys; sys.path.append(sys.argv[1]); import sidecar.tap.wire, protos.stethoscope.v1; print(sidecar.__file__)"
    assert str(tmp_path) in own.run("-c", use, libraries)
    assert any("sidecar/tap/__pycache__" in one for one in _tree(tmp_path / "venv") - before)
    vllm.run(*pip, "uninstall", "--quiet", "--yes", "stethoscope")
    assert _tree(tmp_path / "venv") == before


def test_without_its_variable_the_plugin_does_nothing_in_the_engine(vllm):
    """vLLM loads the plugin in each of its processes: all that comes of it there are the modules that say no."""
    printed = vllm.run(str(HERE / "inside" / "what_is_ours.py"), env={"VLLM_PLUGINS": "stethoscope"})
    looked = json.loads(printed.splitlines()[-1])
    said_no = {"sidecar", "sidecar.tap", "sidecar.tap.switch", "sidecar.tap.vllm", "sidecar.tap.vllm.plugin"}
    assert set(looked["untapped"]["modules"]) == said_no
    assert looked["untapped"]["replaced"] == []
    assert looked["tapped"]["replaced"], "the same look finds what a tap does replace"
