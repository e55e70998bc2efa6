"""A sound artifact to be broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.probes.builders import write_artifact


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "artifacts"
    write_artifact(root, "probe_one")
    return root


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "probe_one"
