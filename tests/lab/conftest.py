from __future__ import annotations

import importlib.util

import pytest

# Ray is an extra. Where it is not installed there is nothing to be claimed, and no test.
collect_ignore = [] if importlib.util.find_spec("ray") else ["test_ray.py"]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a few texts each, in this process."""
    monkeypatch.setattr("probes.activations.plan.SHARD_TOKENS", 16)
