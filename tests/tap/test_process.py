"""What only whole processes show: fork, exit, and imports."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tap.conftest import MakeReceiver
from tests.tap.receiver import control

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture(params=["grpc", "ring"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _run(script: str, address: str, *, expect: int = 0) -> str:
    environment = os.environ | {"STETHOSCOPE_ADDRESS": address, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == expect, done.stderr
    return done.stdout


def test_in_a_child_of_fork_the_tap_is_off_and_the_model_works(make_receiver: MakeReceiver, transport: str) -> None:
    receiver = make_receiver(control((1,)))
    script = """
        import os, sys, torch
        from sidecar.tap.transformers import attach
        from tests.tap.engine import until
        from tests.tap.models import tiny

        model = tiny()
        tap = attach(model, engine_id="forked")
        until(lambda: tap.client.connected)
        tokens = torch.tensor([[5, 6, 7]])
        model(tokens)
        child = os.fork()
        if child == 0:
            model.generate(tokens, max_new_tokens=3, do_sample=False)
            off = tap.client.off and not tap.client.connected and tap.errors() == {}
            off = off and tap.client.traffic.counts().tokens_computed == 3
            tap.detach()
            sys.exit(7 if off else 8)  # by way of atexit
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        model(tokens)
        tap.detach(5.0)
    """
    assert _run(script, receiver.address).split() == ["7"]
    assert receiver.reports[-1].tokens_computed == 6
    assert receiver.goodbyes == 1
    assert receiver.by_ring == (len(receiver.requests) if transport == "ring" else 0)


def test_a_script_that_just_ends_says_goodbye(make_receiver: MakeReceiver) -> None:
    receiver = make_receiver(control((1,)))
    script = """
        import torch
        from sidecar.tap.transformers import attach
        from tests.tap.engine import until
        from tests.tap.models import tiny

        model = tiny()
        tap = attach(model)
        until(lambda: tap.client.connected)
        model(torch.tensor([[5, 6, 7]]))
    """
    _run(script, receiver.address)
    receiver.wait(lambda r: r.goodbyes == 1)
    assert (len(receiver.batches), receiver.reports[-1].tap.ok) == (1, 1)


def test_the_package_is_light_until_a_model_is_tapped() -> None:
    script = """
        import sys
        import sidecar.tap.transformers, sidecar.tap.transformers.launcher, sidecar.tap.address
        print([name for name in ("torch", "transformers", "grpc") if name in sys.modules])
    """
    assert _run(script, "unix:/nowhere.sock").strip() == "[]"


def test_the_default_address_is_where_an_unconfigured_sidecar_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sidecar.config import Listen
    from sidecar.tap.address import default_address

    monkeypatch.delenv("STETHOSCOPE_ADDRESS", raising=False)
    for runtime in (str(tmp_path), ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        assert default_address() == Listen().address
    monkeypatch.setenv("STETHOSCOPE_ADDRESS", "127.0.0.1:1234")
    assert default_address() == "127.0.0.1:1234"


def test_each_stage_of_a_pipeline_finds_a_sidecar_of_its_own_where_the_address_has_a_place_for_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sidecar.tap.address import default_address

    monkeypatch.setenv("STETHOSCOPE_ADDRESS", "unix:/run/{stage}/s{stage}.sock")
    assert [default_address(stage) for stage in (0, 1, 11)] == [f"unix:/run/{n}/s{n}.sock" for n in (0, 1, 11)]
    assert default_address() == "unix:/run/0/s0.sock", "an engine without stages is its own first one"
    monkeypatch.setenv("STETHOSCOPE_ADDRESS", "unix:/run/{other}.sock")
    assert default_address(1) == "unix:/run/{other}.sock"


def test_an_engine_id_is_always_one_that_the_sidecar_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from sidecar.tap.address import default_engine_id

    monkeypatch.setenv("STETHOSCOPE_ENGINE_ID", "replica 3/éè" + "x" * 200)
    assert default_engine_id("transformers") == ("replica_3/_" + "x" * 200)[:128]
    monkeypatch.delenv("STETHOSCOPE_ENGINE_ID")
    assert default_engine_id("transformers").startswith("transformers@")
