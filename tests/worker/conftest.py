from __future__ import annotations

from collections.abc import Iterator

import pytest

from sidecar.clock import ManualClock, SystemClock
from sidecar.log import Log
from sidecar.worker.shards import Shards
from tests.service_fixtures import artifacts, home, serve

__all__ = ["artifacts", "home", "serve"]


@pytest.fixture(scope="module")
def shards() -> Iterator[Shards]:
    """Two, with a clock that stands still: nothing is ever late."""
    made = Shards(2, ManualClock(), Log(SystemClock()))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def mortal(lines: list[str]) -> Iterator[Shards]:
    """One shard, to be frozen or killed."""
    made = Shards(1, SystemClock(), Log(SystemClock(), write=lines.append))
    made.start()
    yield made
    made.stop()
