"""Small sound artifacts to break on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import save_artifact
from probes.manifest import Manifest
from sidecar.types import FloatArray, ModelIdentity

WIDTH = 8
MODEL = ModelIdentity(
    name="tiny",
    architecture="LlamaForCausalLM",
    layers=6,
    width=WIDTH,
    weights_digest="a" * 64,
    tokenizer_digest="b" * 64,
    dtype="float32",
    quantisation="none",
    engine="transformers",
    engine_version="5.0",
)


def manifest_fields(name: str = "probe_one", **changes: Any) -> dict[str, Any]:
    """A linear probe's manifest for `MODEL`, as `save_artifact` takes it."""
    fields: dict[str, Any] = {
        "kind": "linear_probe",
        "name": name,
        "version": "1.0.0",
        "description": "A direction for tests.",
        "positive_label": "yes",
        "negative_label": "no",
        "tap_point": "blocks.3.resid_post",
        "feature_contract": {"hook_point": "residual stream after block 3", "width": WIDTH, "token_span": "prompt"},
        "model": {
            "name": MODEL.name,
            "architecture": MODEL.architecture,
            "layers": MODEL.layers,
            "weights_digest": MODEL.weights_digest,
            "tokenizer_digest": MODEL.tokenizer_digest,
            "dtype": MODEL.dtype,
            "engine": MODEL.engine,
        },
        "evidence": "decodable",
        "training_data": {"name": "none", "digest": "c" * 64, "rows": 10, "licence": "CC0"},
        "licence": "Apache-2.0",
        "aggregation": {"kind": "mean"},
        "calibration": {"kind": "platt", "scale": 2.0, "offset": -1.0},
        "threshold": {
            "probability": 0.7,
            "target_fpr": 0.05,
            "measured_fpr": 0.02,
            "fpr_interval": [0.0, 0.05],
            "benign_rows": 100,
            "certified": True,
        },
        "quality": {
            "test_rows": 100,
            "auroc": 0.9,
            "auroc_interval": [0.85, 0.95],
            "baselines": {"length": 0.5},
            "best_baseline": "length",
            "gain": 0.4,
            "gain_interval": [0.3, 0.5],
            "shuffled_label_auroc": 0.5,
            "verdict": "beats its baselines",
        },
    }
    return fields | changes


def direction(seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((WIDTH, 1)).astype(np.float32)


def write_artifact(root: Path, folder: str = "probe_one", **changes: Any) -> Manifest:
    """Save a sound artifact to ``root/folder``; its name is the folder's unless told otherwise."""
    fields = manifest_fields(**({"name": folder} | changes))
    return save_artifact(root / folder, fields, direction(), np.full(1, 0.25, np.float32))
