"""What the tests of the exporters share: a clean environment, promtool, and receivers of OTLP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.export.receivers import FrozenCollector, Receiver, Rotel

REPO = Path(__file__).parents[2]
NO_APT = 3  # exit status of get_promtool.sh where there is nothing to unpack from

Promtool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _no_otel_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def promtool_path() -> str:
    found = subprocess.run(
        ["/bin/sh", REPO / "deploy" / "get_promtool.sh"], capture_output=True, text=True, timeout=110, check=False
    )
    if found.returncode == NO_APT:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture
def promtool(promtool_path: str) -> Promtool:
    def run(*arguments: str, page: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [promtool_path, *arguments], input=page, capture_output=True, text=True, timeout=60, check=False, cwd=REPO
        )

    return run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.start()
    yield receiver
    receiver.stop()


@pytest.fixture
def frozen_collector() -> Iterator[FrozenCollector]:
    collector = FrozenCollector()
    yield collector
    collector.close()


@pytest.fixture
def rotel(receiver: Receiver, tmp_path: Path) -> Iterator[Rotel]:
    rotel = Rotel(tmp_path, forward_to=receiver.endpoint)
    rotel.start()
    yield rotel
    rotel.stop()
