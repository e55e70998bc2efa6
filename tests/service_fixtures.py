"""Fixtures that start a real service in this process, shared by the folders whose tests talk to one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.config import Config, load_config
from sidecar.service import Sidecar
from tests.builders import write_control, write_probe
from tests.service.client import Client

MakeSidecar = Callable[[Config], Sidecar]


@contextmanager
def private_folder() -> Iterator[Path]:
    """A short private folder: a Unix socket's path has 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="stet-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write_artifacts(home: Path) -> Path:
    root = home / "artifacts"
    write_probe(root, "first", column=0)
    write_probe(root, "second", column=1)
    write_control(root)
    return root


def settings(home: Path, artifacts: Path, **flags: object) -> Config:
    """A configuration with limits small enough to reach, without anything of this machine's environment."""
    base = {
        "listen.address": f"unix:{home}/run/sidecar.sock",
        "artifacts.folder": str(artifacts),
        "artifacts.reload_s": 0.05,
        "metrics.port": 0,
        "limits.rows": 64,
        "limits.segments": 8,
        "listen.max_message_bytes": 1 << 20,
        "listen.drain_s": 2.0,
        "worker.process": False,  # a second a test; tests of the process itself ask for it
        "worker.calibrate_ms": 5.0,
        "ladder.enabled": False,  # a busy machine is none of what these tests are about
    }
    return load_config(env={}, flags={**base, **flags})


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def artifacts(home: Path) -> Path:
    return write_artifacts(home)


@pytest.fixture
def lines() -> list[str]:
    """What the sidecar logged."""
    return []


@pytest.fixture
def serve(home: Path, artifacts: Path, lines: list[str]) -> Iterator[Callable[..., Sidecar]]:
    started: list[Sidecar] = []

    def make(make_sidecar: MakeSidecar | None = None, **flags: object) -> Sidecar:
        config = settings(home, artifacts, **flags)
        sidecar = Sidecar(config, write_log=lines.append) if make_sidecar is None else make_sidecar(config)
        sidecar.start()
        started.append(sidecar)
        return sidecar

    yield make
    for sidecar in started:
        sidecar.stop()


@pytest.fixture
def client(serve: Callable[..., Sidecar]) -> Iterator[Client]:
    """A registered client of a running sidecar."""
    with Client(serve()) as one:
        one.register()
        yield one
