"""``python -m bench.naive ADDRESS ARTIFACTS [thrifty]``: the service that one writes in a day, to be compared with.

gRPC's own protobuf deserialisers, torch in float32, a dict of running scores by request, ``.labels().observe()`` for every
reading (the same histograms of the same readings that the sidecar keeps), a span for every step and one for every layer.
The same verdicts. thrifty: one observation per signal and step, its mean; the histograms say less then.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import torch
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, Counter, Histogram
from safetensors.numpy import load_file

from bench.grpc_server import serve
from protos.stethoscope.v1 import ingest_pb2

_EDGES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_WINDOW = 10  # of every kind: no signal is judged before it has so many readings


class _Discard(SpanExporter):
    """A collector that costs nothing: the comparison is to the naive service's advantage here."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        return SpanExportResult.SUCCESS


@dataclass
class _Layer:
    names: list[str]
    kinds: list[str]
    thresholds: npt.NDArray[np.float64]
    directions: torch.Tensor  # [D, K], the control last


@dataclass
class _Running:
    """One request's scores at one layer."""

    count: int = 0
    total: Any = 0.0
    ema: Any = 0.0
    highest: Any = -np.inf
    recent: deque[Any] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def take(self, row: npt.NDArray[np.float64]) -> dict[str, Any]:
        """The scores of every kind with one reading more."""
        self.count += 1
        self.total = self.total + row
        alpha = 2.0 / (_WINDOW + 1) if self.count > 1 else 1.0
        self.ema = self.ema + alpha * (row - self.ema)
        self.recent.append(row)
        rolling = np.mean(self.recent, axis=0)
        if self.count >= _WINDOW:
            self.highest = np.maximum(self.highest, rolling)
        return {
            "mean": self.total / self.count,
            "last": row,
            "ema": self.ema,
            "max_rolling_mean": self.highest if self.count >= _WINDOW else rolling,
        }


class Naive:
    def __init__(self, layers: dict[int, _Layer], *, thrifty: bool) -> None:
        self._layers = layers
        self._thrifty = thrifty
        self._running: dict[tuple[str, int], _Running] = {}
        registry = CollectorRegistry()
        self._scores = Histogram("score", "of every reading", ["probe"], buckets=_EDGES, registry=registry)
        self._steps = Counter("steps", "steps scored", registry=registry)
        self._control = Counter("control", "positive control", ["layer", "ok"], registry=registry)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(_Discard()))
        self._tracer = provider.get_tracer("naive")

    def stream(
        self, requests: Iterator[ingest_pb2.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamResponse]:
        del context
        yield ingest_pb2.StreamResponse(control=ingest_pb2.Control())
        for request in requests:
            with self._tracer.start_as_current_span("step"):
                yield ingest_pb2.StreamResponse(result=self._step(request.step_batch))

    def _step(self, batch: ingest_pb2.StepBatch) -> ingest_pb2.StepResult:
        flagged: dict[str, list[ingest_pb2.SignalReading]] = {}
        for tensor in batch.tensors:
            with self._tracer.start_as_current_span(f"layer {tensor.tap_point.layer}"):
                self._layer(batch, tensor, flagged)
        self._steps.inc()
        verdicts = [
            ingest_pb2.Verdict(request_id=request, action=ingest_pb2.ACTION_FLAG, signals=signals)
            for request, signals in flagged.items()
        ]
        return ingest_pb2.StepResult(
            batch_id=batch.batch_id, outcome=ingest_pb2.OUTCOME_SCORED, plan_generation=1, verdicts=verdicts
        )

    def _layer(
        self,
        batch: ingest_pb2.StepBatch,
        tensor: ingest_pb2.TapTensor,
        flagged: dict[str, list[ingest_pb2.SignalReading]],
    ) -> None:
        layer = self._layers[tensor.tap_point.layer]
        raw = torch.frombuffer(bytearray(tensor.raw), dtype=torch.bfloat16).view(tensor.rows, tensor.columns)
        rows = raw.float()
        if not torch.isfinite(rows).all():
            raise ValueError("a row is not finite")
        readings = (rows @ layer.directions).double().numpy()
        control = readings[:, -1]
        for ok in ((control > -10) & (control < 10)).tolist():
            self._control.labels(layer=str(tensor.tap_point.layer), ok=str(ok)).inc()
        readings = readings[:, :-1]
        self._observe(layer, 1 / (1 + np.exp(-readings)))
        for row, request in enumerate(batch.segments.request_ids):  # a decode step: one row for each request
            running = self._running.setdefault((request, tensor.tap_point.layer), _Running())
            self._judge(layer, request, running, readings[row], flagged)

    def _observe(self, layer: _Layer, scores: npt.NDArray[np.float64]) -> None:
        for name, column in zip(layer.names, scores.T, strict=True):
            if self._thrifty:
                self._scores.labels(probe=name).observe(column.mean())
            else:
                for score in column.tolist():
                    self._scores.labels(probe=name).observe(score)

    def _judge(
        self,
        layer: _Layer,
        request: str,
        running: _Running,
        row: npt.NDArray[np.float64],
        flagged: dict[str, list[ingest_pb2.SignalReading]],
    ) -> None:
        by_kind = running.take(row)
        if running.count < _WINDOW:
            return
        scores = np.choose([list(by_kind).index(kind) for kind in layer.kinds], list(by_kind.values()))
        scores = 1 / (1 + np.exp(-scores))
        for index in np.flatnonzero(scores > layer.thresholds).tolist():
            reading = ingest_pb2.SignalReading(
                name=layer.names[index], score=scores[index], threshold=layer.thresholds[index]
            )
            flagged.setdefault(request, []).append(reading)


def load(root: Path) -> dict[int, _Layer]:
    """The artifacts of ``bench.artifacts``, stacked by layer."""
    found: dict[int, list[tuple[dict[str, Any], npt.NDArray[np.float32]]]] = {}
    for folder in root.iterdir():
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        direction = next(one for one in load_file(folder / "weights.safetensors").values() if one.ndim == 2)
        found.setdefault(int(manifest["tap_point"].split(".")[1]), []).append((manifest, direction))
    return {layer: _stack(members) for layer, members in found.items()}


def _stack(members: list[tuple[dict[str, Any], npt.NDArray[np.float32]]]) -> _Layer:
    members = sorted(members, key=lambda member: member[0]["kind"] != "linear_probe")
    probes = [manifest for manifest, _ in members if manifest["kind"] == "linear_probe"]
    return _Layer(
        [probe["name"] for probe in probes],
        [probe["aggregation"]["kind"] for probe in probes],
        np.array([probe["threshold"]["probability"] for probe in probes]),
        torch.from_numpy(np.concatenate([direction for _, direction in members], axis=1)),
    )


def main(address: str, artifacts: str, how: str = "") -> None:
    torch.set_num_threads(1)
    naive = Naive(load(Path(artifacts)), thrifty=how == "thrifty")
    handler = grpc.stream_stream_rpc_method_handler(
        naive.stream, ingest_pb2.StreamRequest.FromString, ingest_pb2.StreamResponse.SerializeToString
    )
    serve(address, handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
