from __future__ import annotations

import pytest


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a few texts each, in this process."""
    monkeypatch.setattr("probes.activations.plan.SHARD_TOKENS", 16)
