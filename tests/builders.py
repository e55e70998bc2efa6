"""Small real objects for tests: signals, artifacts on disk, models and wire batches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import save_artifact
from probes.manifest import AggregationKind, TokenSpan
from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.reading.plan import Signal
from sidecar.types import Evidence, ModelIdentity, TapPoint

WIDTH = 16
LAYERS = 4
TAP = TapPoint(1)
MODEL = ModelIdentity(
    "tiny", "LlamaForCausalLM", LAYERS, WIDTH, "a" * 64, "b" * 64, "float32", "none", "transformers", "5.23.0"
)
_ids = itertools.count()


def make_signal(name: str = "probe", **changes: Any) -> Signal:
    fields: dict[str, Any] = {
        "name": name,
        "version": "1.0.0",
        "digest": "d",
        "tap_point": TAP,
        "column": 0,
        "aggregation": AggregationKind.MEAN,
        "window": 10,
        "span": TokenSpan.ALL,
        "skip_positions": 0,
        "scale": 1.0,
        "offset": 0.0,
        "threshold": 0.5,
        "target_fpr": 0.05,
        "certified": True,
        "evidence": Evidence.DECODABLE,
        "stale_reason": "",
    }
    return Signal(**{**fields, **changes})


def manifest_fields(name: str, kind: str = "linear_probe", tap: TapPoint = TAP, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "version": "1.0.0",
        "description": "made by a test",
        "tap_point": tap.name,
        "feature_contract": {"hook_point": "resid", "width": WIDTH, "token_span": "all", "skip_positions": 0},
        "model": {
            "name": MODEL.name,
            "architecture": MODEL.architecture,
            "layers": MODEL.layers,
            "weights_digest": MODEL.weights_digest,
            "tokenizer_digest": MODEL.tokenizer_digest,
            "dtype": MODEL.dtype,
            "engine": MODEL.engine,
        },
        "evidence": "unverified",
        "training_data": {"name": "none", "digest": "c" * 64, "rows": 1, "licence": "none"},
        "licence": "Apache-2.0",
    }
    if kind == "linear_probe":
        fields |= {
            "aggregation": {"kind": "mean", "window": 1},
            "calibration": {"kind": "none"},
            "threshold": {
                "probability": 0.9,
                "target_fpr": 0.05,
                "measured_fpr": 0.05,
                "fpr_interval": [0.0, 0.1],
                "benign_rows": 100,
                "certified": True,
            },
            "quality": {
                "test_rows": 1,
                "auroc": 0.9,
                "auroc_interval": [0.8, 1.0],
                "baselines": {"length": 0.5},
                "best_baseline": "length",
                "gain": 0.4,
                "gain_interval": [0.3, 0.5],
                "shuffled_label_auroc": 0.5,
                "verdict": "made by a test",
            },
        }
    else:
        fields["control_range"] = {"low": -100.0, "high": 100.0, "outside": 0.0}
    return {**fields, **changes}


def axis(column: int) -> np.ndarray:
    """A direction [WIDTH, 1] that reads one coordinate."""
    direction = np.zeros((WIDTH, 1), dtype=np.float32)
    direction[column] = 1.0
    return direction


def write_probe(
    root: Path, name: str, column: int = 0, tap: TapPoint = TAP, offset: float = 0.0, **changes: Any
) -> None:
    fields = manifest_fields(name, tap=tap, **changes)
    save_artifact(root / name, fields, axis(column), np.array([offset], dtype=np.float32))


def write_control(
    root: Path,
    name: str = "control",
    column: int = WIDTH - 1,
    tap: TapPoint = TAP,
    offset: float = 0.0,
    **changes: Any,
) -> None:
    fields = manifest_fields(name, "positive_control", tap, **changes)
    save_artifact(root / name, fields, axis(column), np.array([offset], dtype=np.float32))


def wire_model(model: ModelIdentity = MODEL) -> control_pb2.ModelIdentity:
    names = control_pb2.ModelIdentity.DESCRIPTOR.fields_by_name
    return control_pb2.ModelIdentity(**{name: getattr(model, name) for name in names})


def wire_tap(tap: TapPoint = TAP) -> ingest_pb2.TapPoint:
    return ingest_pb2.TapPoint(layer=tap.layer, site=ingest_pb2.SITE_RESID_POST)


def wire_segments(requests: Sequence[tuple[str, Sequence[int]]], **columns: Any) -> ingest_pb2.Segments:
    return ingest_pb2.Segments(
        request_ids=[name for name, _ in requests],
        rows=[len(positions) for _, positions in requests],
        phases=[ingest_pb2.PHASE_PREFILL] * len(requests),
        positions=[position for _, positions in requests for position in positions],
        **columns,
    )


def wire_batch(
    rows: np.ndarray | None = None,
    requests: Sequence[tuple[str, Sequence[int]]] = (("req-0", (0, 1, 2)),),
    **changes: Any,
) -> ingest_pb2.StepBatch:
    """A sound batch: float32 rows [T, WIDTH] (small random ones if not given) for the requests' positions."""
    total = sum(len(positions) for _, positions in requests)
    number = next(_ids)
    if rows is None:
        rows = np.random.default_rng(number).normal(size=(total, WIDTH)).astype(np.float32)
    fields: dict[str, Any] = {
        "batch_id": f"batch-{number}",
        "engine_id": "engine-0",
        "taken_ns": time.time_ns(),
        "step": number,
        "segments": wire_segments(requests),
        "tensors": [
            ingest_pb2.TapTensor(
                tap_point=wire_tap(),
                dtype=ingest_pb2.ELEMENT_TYPE_F32,
                rows=rows.shape[0],
                columns=rows.shape[1],
                raw=rows.astype("<f4").tobytes(),
            )
        ],
    }
    return ingest_pb2.StepBatch(**{**fields, **changes})
