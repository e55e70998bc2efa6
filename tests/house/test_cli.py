"""The command line answers at once, and says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import yaml

from sidecar.cli import main
from sidecar.config import Config, load_config

HEAVY = (
    "grpc",
    "numpy",
    "torch",
    "transformers",
    "pydantic",
    "opentelemetry",
    "prometheus_client",
    "yaml",
    "sklearn",
    "rich",
)


@pytest.mark.process
@pytest.mark.parametrize("command", ["sidecar", "probes"])
def test_help_answers_in_half_a_second(command):
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"{command}.cli", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.5


@pytest.mark.process
@pytest.mark.parametrize("module", ["sidecar.cli", "probes.cli", "sidecar.tap", "sidecar.types"])
def test_importing_a_command_imports_nothing_heavy(module):
    allowed = ("numpy",) if module == "sidecar.types" else ()
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules and m not in {allowed!r}])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_schema_describes_every_setting_and_the_defaults_are_a_sound_file(capsys, tmp_path):
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Config.model_fields)
    assert main(["config", "defaults"]) == 0
    path = tmp_path / "sidecar.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path, env={}) == load_config(env={})
    assert set(yaml.safe_load(path.read_text())) == set(Config.model_fields)


def test_environment_beats_the_file_and_flags_beat_both(tmp_path):
    path = tmp_path / "sidecar.yaml"
    path.write_text("metrics: {port: 1111}\nbudget: {step_ms: 2.5}\nlog: {level: ERROR}\n")
    env = {"STETHOSCOPE_METRICS__PORT": "2222", "STETHOSCOPE_LOG__LEVEL": "DEBUG"}
    config = load_config(path, env=env, flags={"metrics.port": 3333})
    assert (config.metrics.port, config.log.level, config.budget.step_ms) == (3333, "DEBUG", 2.5)


def test_check_reads_the_shipped_artifacts(capsys):
    from sidecar.demo.options import shipped_artifacts

    assert main(["check", "--artifacts", str(shipped_artifacts())]) == 0
    out = capsys.readouterr().out
    assert "sentiment" in out
    assert "configuration is sound" in out


def test_status_without_a_sidecar_says_so(capsys, tmp_path):
    assert main(["status", "--address", f"unix:{tmp_path}/none.sock"]) == 69
    assert "no answer" in capsys.readouterr().err
