"""Circuits, from discovery to alarms: minutes of arithmetic, only by make test-circuits. FULL=1 takes the long forms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.circuits)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long forms were asked for."""
    return bool(os.environ.get("FULL"))
