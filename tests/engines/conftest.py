"""Real engines, each in an environment of its own: only by make test-engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.smollm2 import cache_folder
from tests.engines.environment import VLLM, Environment

_HERE = Path(__file__).parent
_TEST_S = 480.0  # a server may take 300 s to start on a busy machine

# They start no engine: another process may run them beside those that do, one engine after the other.
_WITHOUT_ENGINE = {
    "test_environment",
    "test_other_clients",
    "test_recipe",
    "test_sglang_contract",
    "test_vllm_parallel",
    "test_vllm_v2",
    "test_vllm_versions",
    "test_vllm_worker",
    "test_warden",
}

collect_ignore = ["inside"]  # modules of the engine's process: what they import is not here


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A long form that was not asked for is not chosen: it does not stand among the skipped, where something may be wrong."""
    ours = [item for item in items if _HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.engines)
        item.add_marker(pytest.mark.timeout(_TEST_S))
        group = item.path.stem if item.path.stem in _WITHOUT_ENGINE else "with an engine"
        item.add_marker(pytest.mark.xdist_group(group))
    left_out = [] if os.environ.get("FULL") else [item for item in ours if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def vllm() -> Iterator[Environment]:
    """Where vLLM is installed, and our package beside it."""
    with VLLM.environment(cache_folder()) as environment:
        yield environment
