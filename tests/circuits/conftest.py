"""Circuits, from discovery to alarms: minutes of arithmetic, only by make test-circuits. FULL=1 takes the long forms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.circuits.baseline_fit import Options, fit_baseline
from tests.circuits.served import archived, live, write_validated
from tests.service_fixtures import private_folder

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.circuits)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long forms were asked for."""
    return bool(os.environ.get("FULL"))


@pytest.fixture
def home() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def told(home: Path) -> Path:
    """A folder with a validated circuit and the baseline of half an hour of its traffic, which the archive beside it holds."""
    write_validated(home / "artifacts" / "going_on")
    with live(home, home / "artifacts", archived(home)) as one:
        one.traffic(30, 0.5)
    fit_baseline([home / "archive"], home / "artifacts" / "baseline", Options(buckets=1, armed=True))
    return home
