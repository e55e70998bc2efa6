"""Real engines, each in an environment of its own: only by make test-engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.smollm2 import cache_folder
from tests.engines.environment import VLLM, Environment

_HERE = Path(__file__).parent
_TEST_S = 480.0  # a server may take 300 s to start on a busy machine

collect_ignore = ["inside"]  # modules of the engine's process: what they import is not here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.timeout(_TEST_S))


@pytest.fixture(scope="session")
def vllm() -> Iterator[Environment]:
    """Where vLLM is installed, and our package beside it."""
    with VLLM.environment(cache_folder()) as environment:
        yield environment
