from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.survivor import Survivor, surviving
from tests.service_fixtures import artifacts, client, home, lines, serve

__all__ = ["artifacts", "client", "home", "lines", "serve", "survivor"]


@pytest.fixture(scope="session")
def survivor() -> Iterator[Survivor]:
    """One sidecar for all tests of this folder that only refuse: whatever came before, the next one is answered right."""
    with surviving() as one:
        yield one
