"""Artifacts to be exported, and files of other tools to be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from probes.activations.store import ActivationStore
from probes.release.pack import pack
from sidecar.types import TapPoint
from tests.lab.drafts import make_draft

TAP = TapPoint(1)


def packed(root: Path, store: ActivationStore, **changes: Any) -> Path:
    make_draft(root / "draft", store, **changes)
    pack(root / "draft", root / "artifact")
    return root / "artifact"


def save_npz(path: Path, **changes: Any) -> None:
    arrays: dict[str, Any] = {
        "weights": np.ones(4),
        "mean": np.zeros(4),
        "std": np.ones(4),
        "bias": np.float64(0),
        "metadata": np.array(json.dumps({"format_version": 1})),
    }
    kept = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    with path.open("wb") as file:
        np.savez(file, **kept)
