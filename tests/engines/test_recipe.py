"""How an environment is made, kept and renewed: with a recipe that takes seconds, by the same way as vLLM's."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.environment import Environment, EnvironmentNotMadeError, Recipe
from tests.engines.product import ROOT
from tests.waiting import until

MAKING = "making an environment"
ASK = "from pathlib import Path; import sys; from tests.engines.test_recipe import small; small(Path(sys.argv[1]))"


def recipe(folder: Path, *pins: str) -> Recipe:
    """What building our wheel needs, and nothing of an engine."""
    lock = folder / "small.lock.txt"
    lock.write_text("\n".join(("setuptools==78.1.1", *pins)))
    return Recipe(lock, "iniconfig==2.3.1")


def small(folder: Path) -> Environment:
    with recipe(folder).environment(folder) as made:
        return made


def _version(environment: Environment, name: str) -> str:
    code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
    return environment.run("-c", code, name).strip()


@dataclass(frozen=True, slots=True)
class Asked:
    folder: Path
    environment: Environment
    statuses: list[int]
    said: str


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """One process is killed while it makes the environment, then two others ask for it at once."""
    folder = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-c", ASK, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as maker:
        until(lambda: list((folder / "engines").glob("*/venv/bin/python")))
        os.killpg(maker.pid, signal.SIGKILL)
    assert not list((folder / "engines").glob("*/made"))
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[1] for one in both]
    return Asked(folder, small(folder), [one.returncode for one in both], "".join(said))


def test_a_half_made_environment_is_made_again_once_however_many_ask(asked):
    assert asked.statuses == [0, 0]
    assert asked.said.count(MAKING) == 1
    assert _version(asked.environment, "iniconfig") == "2.3.1"
    assert _version(asked.environment, "setuptools") == "78.1.1"
    assert _version(asked.environment, "vllm").endswith("+cpu")
    assert asked.environment.run("-m", "pip", "show", "--files", "stethoscope").count("sidecar/tap/") > 1


def test_an_environment_that_stands_is_given_as_it_is(asked, capsys):
    note = asked.environment.folder / "product"
    written_ns = note.stat().st_mtime_ns
    assert small(asked.folder) == asked.environment
    assert note.stat().st_mtime_ns == written_ns
    assert capsys.readouterr().err == ""


def test_only_our_package_is_renewed_when_its_source_changed_and_not_under_a_user(asked, capsys):
    made = asked.environment
    note = made.folder / "product"
    digest = note.read_text()
    note.write_text("of another source")
    renewed = threading.Thread(target=small, args=(asked.folder,))
    with (made.folder.parent / f".{made.folder.name}.lock").open() as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        renewed.start()
        renewed.join(1.0)
        assert note.read_text() == "of another source", "somebody runs from it"
    renewed.join(60.0)
    assert note.read_text() == digest
    assert capsys.readouterr().err == "", "the engine's own packages stay"


def test_a_pin_that_cannot_be_had_is_told_with_pips_words(tmp_path):
    wrong = recipe(tmp_path, "./not_there.whl")
    with pytest.raises(EnvironmentNotMadeError, match=r"not_there\.whl"), wrong.environment(tmp_path):
        pass
    assert not list((tmp_path / "engines").glob("*/made"))
