"""Bad configuration never starts, and is told whole: every problem of the file, the environment and the flags at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cli import main
from sidecar.config import Config, load_config
from sidecar.errors import ConfigError
from tests.faults.process import plain_environment

EX_CONFIG = 78


def problems(path: Path | None = None, env: dict[str, str] | None = None, **flags: object) -> list[str]:
    """What is wrong with a configuration; fails if nothing is."""
    with pytest.raises(ConfigError) as wrong:
        load_config(path, env={} if env is None else env, flags=flags)
    return list(wrong.value.problems)


def named(found: list[str]) -> set[str]:
    """The settings or variables that the problems begin with."""
    return {problem.partition(":")[0] for problem in found}


def numbers() -> list[str]:
    """Every setting that is a number and must be above 0, dotted."""
    schema = Config.model_json_schema()
    found = []
    for section, reference in schema["properties"].items():
        for name, one in schema["$defs"][reference["$ref"].rpartition("/")[2]]["properties"].items():
            if one.get("exclusiveMinimum") == 0:
                found.append(f"{section}.{name}")
    assert len(found) > 20
    return found


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -float("inf"), "many", None, [], 1e300])
def test_every_number_that_must_be_positive_refuses_what_is_not(value):
    flags = dict.fromkeys(numbers(), value)
    assert named(problems(**flags)) == set(numbers())


@pytest.mark.parametrize("name", ["sampling.request_fraction", "coverage.min_seen", "traces.root_fraction"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), "half"])
def test_a_share_outside_of_0_to_1_is_refused(name, value):
    assert named(problems(**{name: value})) == {name}


UNKNOWN = ["metrics.prot", "nonsense", "listen.adress", "limits.rows.more", "Metrics.port", ".port", "metrics."]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_setting_is_refused_by_name(name):
    (problem,) = problems(**{name: 1})
    assert problem.partition(":")[0] in (name, name.partition(".")[0], name.rpartition(".")[0])


BROKEN = {
    "limits.segments above limits.rows": {"limits.segments": 100, "limits.rows": 10},
    "limits.segments above limits.requests": {"limits.segments": 100, "limits.requests": 10},
    "coverage.window_s above coverage.forget_s": {"coverage.window_s": 10, "coverage.forget_s": 5},
    "coverage.window_s as long as coverage.forget_s": {"coverage.window_s": 5, "coverage.forget_s": 5},
    "ladder.low as high as ladder.high": {"ladder.low": 2, "ladder.high": 2},
    "ladder.up_s above ladder.max_up_s": {"ladder.up_s": 10, "ladder.max_up_s": 5},
}


@pytest.mark.parametrize(("name", "flags"), BROKEN.items(), ids=BROKEN.keys())
def test_a_broken_relation_names_both_settings(name, flags):
    (problem,) = problems(**flags)
    first, *_, second = name.split()
    assert first in problem
    assert second in problem


def test_broken_relations_are_told_together_and_beside_other_problems():
    flags = {**BROKEN["limits.segments above limits.rows"], **BROKEN["coverage.window_s above coverage.forget_s"]}
    found = problems(**flags, **{"metrics.port": 70000, "nonsense.key": 1})
    assert len(found) == 4
    assert sum("limits.segments must" in problem for problem in found) == 1
    assert sum("coverage.window_s must" in problem for problem in found) == 1


def test_a_relation_of_a_setting_that_is_wrong_itself_is_not_judged():
    found = problems(**{"limits.segments": 100, "limits.rows": -1})
    assert named(found) == {"limits.rows"}


ADDRESSES = [
    "0.0.0.0:5555", "[::]:5555", "192.168.0.1:5555", "example.org:5555", ":5555", "5555", "127.0.0.1", "127.0.0.1:port",
    "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1:\u00b2", "unix:relative.sock", "unix:", "unix:/" + "x" * 100, "",
    "unix-abstract:name", "unix:/run/a%20b.sock", "unix:/run/a?b.sock", "unix:/run/a#b.sock", "unix:/run/a\x00b.sock",
    "ftp://127.0.0.1:5555", "127.0.0.1.example.org:5555", None, 5555,
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_others_could_reach_or_that_is_none_is_refused(address):
    assert named(problems(**{"listen.address": address})) == {"listen.address"}


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.1.2.3:80", "localhost:9", "[::1]:9", "unix:/run/x y/s.sock"])
def test_loopback_and_private_sockets_are_taken(address):
    assert load_config(env={"STETHOSCOPE_LISTEN__ADDRESS": address}).listen.address == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_metrics_listen_on_loopback_only(host):
    assert named(problems(**{"metrics.host": host})) == {"metrics.host"}


def test_a_default_address_that_the_environment_spoils_is_told_and_not_a_crash(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/" + "long/" * 30)
    found = problems(**{"metrics.port": -1})
    assert named(found) == {"listen.address", "metrics.port"}


# The file


FILES = {
    "not there": None,
    "a list": "- a\n- b\n",
    "a word": "word",
    "not YAML": "metrics: [",
    "a tab": "metrics:\n\tport: 1\n",
    "not UTF-8": b"metrics:\n  host: \xff\n",
    "too deep": "[" * 5000,
    "a tag that makes objects": "metrics: !!python/object/apply:os.system ['true']\n",
    "the same section twice": "metrics:\n  port: 1\nlog:\n  level: INFO\nmetrics:\n  port: 2\n",
    "the same key twice": "metrics:\n  port: 1\n  port: 2\n",
    "a folder": ...,
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_a_file_that_cannot_be_used_is_one_problem_beside_the_others(tmp_path, content):
    path = tmp_path / "sidecar.yaml"
    if content is ...:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    found = problems(path, {"STETHOSCOPE_LOG__LEVEL": "LOUD"}, **{"metrics.port": -1})
    assert named(found) == {str(path), "log.level", "metrics.port"}
    assert len(found) == 3


def test_an_empty_file_is_no_problem(tmp_path):
    path = tmp_path / "sidecar.yaml"
    path.write_text("# nothing yet\n")
    assert load_config(path, env={}) == load_config(env={})


@pytest.fixture(scope="module")
def some_file(tmp_path_factory):
    return tmp_path_factory.mktemp("any") / "sidecar.yaml"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_a_configuration_or_a_list_of_problems(some_file, content):
    some_file.write_bytes(content)
    try:
        load_config(some_file, env={})
    except ConfigError as wrong:
        assert wrong.problems  # noqa: PT017 - either way is right, nothing else is


# The environment


MISSPELLED = {
    "STETHOSCOPE_METRICS_PORT": "STETHOSCOPE_METRICS__PORT",
    "STETHOSCOPE_METRIC__PORT": "metric",
    "STETHOSCOPE_METRICS__PROT": "metrics.prot",
    "STETHOSCOPE_METRIC_PORT": "STETHOSCOPE_METRICS__PORT",
    "STETHOSCOPE_LOGLEVEL": "STETHOSCOPE_LOG__LEVEL",
    "STETHOSCOPE_LISTEN_MAX_STREAMS": "STETHOSCOPE_LISTEN__MAX_STREAMS",
    "STETHOSCOPE_SAMPLING_REQUEST_FRACTION": "STETHOSCOPE_SAMPLING__REQUEST_FRACTION",
    "STETHOSCOPE_LOG_NOISE": "STETHOSCOPE_LOG_NOISE",
    "STETHOSCOPE__METRICS__PORT": "STETHOSCOPE__METRICS__PORT",
}


@pytest.mark.parametrize(("variable", "hint"), MISSPELLED.items())
def test_a_misspelled_variable_is_named_and_the_right_one_suggested(variable, hint):
    (problem,) = problems(env={variable: "1"})
    assert hint in problem


OTHERS = {
    "STETHOSCOPE_ADDRESS": "unix:/run/x.sock",
    "STETHOSCOPE_CACHE": "/var/cache/x",
    "STETHOSCOPE_ENGINE_ID": "engine-0",
    "STETHOSCOPE_TAP": "1",
    "STETHOSCOPE_TAP_LAYERS": "1,2",
    "STETHOSCOPE_SKIPS": "fail",
    # Kubernetes, beside Services named stethoscope, stethoscope-metrics and stethoscope-listen
    "STETHOSCOPE_SERVICE_HOST": "10.0.0.1",
    "STETHOSCOPE_SERVICE_PORT": "9464",
    "STETHOSCOPE_PORT": "tcp://10.0.0.1:9464",
    "STETHOSCOPE_PORT_9464_TCP_ADDR": "10.0.0.1",
    "STETHOSCOPE_METRICS_PORT": "tcp://10.0.0.1:9464",
    "STETHOSCOPE_METRICS_PORT_9464_TCP": "tcp://10.0.0.1:9464",
    "STETHOSCOPE_METRICS_SERVICE_HOST": "10.0.0.1",
    "STETHOSCOPE_METRICS_SERVICE_PORT_HTTP": "9464",
    "METRICS__PORT": "1",
}


def test_variables_of_other_parts_and_of_kubernetes_are_nobodys_mistake():
    assert load_config(env=OTHERS) == load_config(env={})


def test_every_setting_can_be_set_by_its_variable():
    defaults = Config().model_dump(mode="json")
    for section, values in defaults.items():
        for key, value in values.items():
            if value is not None:
                env = {f"STETHOSCOPE_{section}__{key}".upper(): yaml.safe_dump(value).removesuffix("...\n").strip()}
                assert load_config(env=env) == load_config(env={}), (section, key)
                assert problems(env=dict.fromkeys(env, "[nonsense")) or section == "artifacts"


# All together, by the command


WRONG_FILE = """
listen: {address: "0.0.0.0:5", drain_s: .nan}
limits: {segments: 100, rows: 10, requests: 0, nonsense: 1}
coverage: {window_s: 100, forget_s: 5}
"""
WRONG_ENV = {
    "STETHOSCOPE_METRICS_PORT": "9500",
    "STETHOSCOPE_LOG__LEVEL": "loud",
    "STETHOSCOPE_BUDGET__STEP_MS": "-1",
    "STETHOSCOPE_TRACES__QUEUE": "[",
}
WRONG_FLAGS = ["--set", "no-equals-sign", "--set", "sampling.request_fraction=2", "--metrics-port=-1"]
ALL_PROBLEMS = {
    "listen.address", "listen.drain_s", "limits.requests", "limits.nonsense", "STETHOSCOPE_METRICS_PORT", "log.level",
    "budget.step_ms", "traces.queue", "--set no-equals-sign", "sampling.request_fraction", "metrics.port",
    "limits.segments must not exceed limits.rows", "coverage.window_s must be below coverage.forget_s",
}  # fmt: skip


@pytest.mark.parametrize("command", ["serve", "check"])
def test_the_command_ends_with_78_and_lists_every_problem_of_every_source(tmp_path, monkeypatch, capsys, command):
    path = tmp_path / "sidecar.yaml"
    path.write_text(WRONG_FILE)
    for name in [name for name in os.environ if name.startswith("STETHOSCOPE_")]:
        monkeypatch.delenv(name)
    for name, value in WRONG_ENV.items():
        monkeypatch.setenv(name, value)
    assert main([command, "--config", str(path), *WRONG_FLAGS]) == EX_CONFIG
    told = capsys.readouterr().err.splitlines()
    assert all(line.startswith("sidecar: ") for line in told)
    assert {line.removeprefix("sidecar: ").partition(":")[0] for line in told} == ALL_PROBLEMS
    assert len(told) == len(ALL_PROBLEMS)


@pytest.mark.process
def test_the_exit_status_of_the_process_is_78_and_nothing_is_left_behind(tmp_path):
    command = [sys.executable, "-m", "sidecar.cli", "serve", "--address", f"unix:{tmp_path}/run/s.sock"]
    made = subprocess.run(
        [*command, "--set", "limits.rows=0", "--set", "log.lines_per_s=0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=plain_environment(),
    )
    assert made.returncode == EX_CONFIG
    assert named([line.removeprefix("sidecar: ") for line in made.stderr.splitlines()]) == {
        "limits.rows",
        "log.lines_per_s",
    }
    assert list(tmp_path.iterdir()) == []
