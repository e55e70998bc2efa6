"""A small sound circuit to break on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from probes.circuits.artifact import save_circuit
from probes.circuits.manifest import CircuitManifest
from sidecar.types import FloatArray, TapPoint
from tests.probes.builders import MODEL, WIDTH

HEADS, LAYER = 2, TapPoint.parse("blocks.3.attn_heads")
MLP = TapPoint.parse("blocks.2.mlp_out")


def ablation(kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "whole": 4.0,
        "none": 0.0,
        "faithfulness": 0.1,
        "completeness": 0.2,
        "necessity": {"left": 0.2, "interval": [0.1, 0.3], "random": [1.0] * 24, "p_value": 0.04},
    } | changes


def findings(**changes: Any) -> dict[str, Any]:
    """Of a circuit that passes every gate."""
    part = {"alone": 0.4, "alone_interval": [0.3, 0.5], "back": 0.3, "back_interval": [0.2, 0.4]}
    return {
        "metric": "logits",
        "acting": "heads",
        "pairs": 32,
        "pairs_digest": "d" * 64,
        "traffic": "texts",
        "universe": 18,
        "sites": ["attn_heads", "mlp_out"],
        "ablations": [ablation("resample"), ablation("mean"), ablation("zero")],
        "nodes": [{"node": f"{LAYER.name}.1"} | part, {"node": MLP.name} | part],
        "curve": {
            "points": [
                {"size": 0.001, "nodes": 1, "faithfulness": 0.1},
                {"size": 1.0, "nodes": 18, "faithfulness": 1.0},
            ],
            "cpr": 0.55,
            "cmd": 0.45,
        },
        "validity": {
            "gap": 7.0,
            "circuit": 6.0,
            "worst": 0.5,
            "worst_node": "blocks.0.mlp_out",
            "others": 16,
            "ratio": 12.0,
            "auroc": 0.99,
        },
        "stability": {"resamples": 1000, "jaccard": 0.8},
    } | changes


def manifest_fields(**changes: Any) -> dict[str, Any]:
    """A draft's manifest for `tests.probes.builders.MODEL`, as `save_circuit` takes it: one head by energy, one MLP."""
    fields: dict[str, Any] = {
        "name": "going_on",
        "version": "1.0.0",
        "description": "A circuit for tests.",
        "behaviour": "goes on",
        "severity": "ticket",
        "model": {
            "name": MODEL.name,
            "architecture": MODEL.architecture,
            "layers": MODEL.layers,
            "weights_digest": MODEL.weights_digest,
            "tokenizer_digest": MODEL.tokenizer_digest,
            "dtype": MODEL.dtype,
            "engine": MODEL.engine,
        },
        "width": WIDTH,
        "token_span": "all",
        "places": [
            {"tap_point": MLP.name, "width": WIDTH, "columns": 1},
            {"tap_point": LAYER.name, "width": WIDTH, "columns": 2, "heads": HEADS},
        ],
        "nodes": [
            {
                "node": f"{LAYER.name}.1",
                "effect": 0.5,
                "readout": {"kind": "energy", "columns": 2, "mu": 0.5, "sigma": 2.0, "active": 1.5, "weight": 1.0},
            },
            {
                "node": MLP.name,
                "effect": 0.3,
                "readout": {"kind": "direction", "mu": 0.0, "sigma": 1.0, "active": 1.6, "weight": -0.5},
            },
            {"node": "blocks.1.attn_heads.0", "effect": 0.1},
        ],
        "score": {
            "bias": 0.25,
            "theta": 1.0,
            "low": -1.0,
            "high": 3.0,
            "traffic_share": 0.05,
            "traffic_tokens": 100,
            "engaged_share": 0.9,
            "engaged_tokens": 20,
        },
        "training_data": {"name": "none", "digest": "c" * 64, "rows": 10, "licence": "CC0"},
        "licence": "Apache-2.0",
    }
    return fields | changes


def columns() -> dict[TapPoint, FloatArray]:
    draws = np.random.default_rng(0)
    heads = np.zeros((WIDTH, 2), np.float32)
    heads[WIDTH // HEADS :] = draws.standard_normal((WIDTH // HEADS, 2))
    return {MLP: draws.standard_normal((WIDTH, 1)).astype(np.float32), LAYER: heads}


def write_circuit(folder: Path, **changes: Any) -> CircuitManifest:
    return save_circuit(folder, manifest_fields(**changes), columns())
