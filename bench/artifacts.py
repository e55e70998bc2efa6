"""Artifacts of any width for benchmarks: random unit directions, so that nothing but the arithmetic is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import save_artifact

KINDS = ("mean", "last", "ema", "max_rolling_mean")  # of the probes of a tap point, in turns
BENCH_MODEL: dict[str, Any] = {
    "name": "bench",
    "architecture": "LlamaForCausalLM",
    "layers": 32,
    "weights_digest": "a" * 64,
    "tokenizer_digest": "b" * 64,
    "dtype": "bfloat16",
    "quantisation": "none",
    "engine": "bench",
    "engine_version": "0",
}


def write_artifacts(
    root: Path, width: int, taps: int, directions: int, threshold: float = 0.99, model: Mapping[str, Any] = BENCH_MODEL
) -> None:
    """``directions`` at each of the first ``taps`` blocks of the model: linear probes, and one positive control as the last."""
    rng = np.random.default_rng(0)
    for layer in range(taps):
        for number in range(directions):
            direction = rng.normal(size=(width, 1)).astype(np.float32)
            direction /= np.linalg.norm(direction)
            control = number == directions - 1
            name = f"control_{layer}" if control else f"probe_{layer}_{number}"
            fields = _control_fields() if control else _probe_fields(number, threshold)
            common = _common(name, layer, width, "positive_control" if control else "linear_probe", model)
            save_artifact(root / name, {**common, **fields}, direction, np.zeros(1, dtype=np.float32))


def _common(name: str, layer: int, width: int, kind: str, model: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in model.items() if key != "engine_version"}
    return {
        "kind": kind,
        "name": name,
        "version": "1.0.0",
        "description": "random direction for a benchmark",
        "tap_point": f"blocks.{layer}.resid_post",
        "feature_contract": {"hook_point": "resid_post", "width": width, "token_span": "all"},
        "model": told,
        "training_data": {"name": "none", "digest": "c" * 64, "rows": 1, "licence": "none"},
        "licence": "Apache-2.0",
    }


def _control_fields() -> dict[str, Any]:
    return {"control_range": {"low": -10.0, "high": 10.0, "outside": 0.0}}


def _probe_fields(number: int, probability: float) -> dict[str, Any]:
    threshold = {"probability": probability, "target_fpr": 0.01, "measured_fpr": 0.01, "fpr_interval": (0.0, 0.1)}
    quality = {
        "test_rows": 1,
        "auroc": 0.5,
        "auroc_interval": (0.0, 1.0),
        "baselines": {},
        "best_baseline": "",
        "gain": 0.0,
        "gain_interval": (0.0, 0.0),
        "shuffled_label_auroc": 0.5,
        "verdict": "random direction",
    }
    return {
        "aggregation": {"kind": KINDS[number % len(KINDS)]},
        "calibration": {"kind": "none"},
        "threshold": {**threshold, "benign_rows": 0, "certified": False},
        "quality": quality,
    }
