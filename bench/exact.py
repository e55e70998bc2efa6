"""Verdicts as the service gives them, compared with verdicts made apart from the same rows in plain float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.artifacts import write_artifacts
from bench.peers import RingPeer
from bench.row import Row
from bench.serving import home, serving
from bench.steps import Message, Shape, Steps
from probes.manifest import Aggregation, AggregationKind
from probes.pooling import aggregate
from probes.registry import load_folder
from protos.stethoscope.v1 import ingest_pb2

_SHAPE, _DIRECTIONS = Shape(taps=4, rows=64, columns=4096), 64
_THRESHOLD = 0.8  # one reading in twelve is over it, and many are near
_WINDOW = 10  # the default of every kind: no signal is judged before it has so many readings
Flags = set[tuple[str, str]]  # (request, signal)


@dataclass(frozen=True, slots=True)
class Signals:
    """The probes of one tap point: names, kinds and directions [D, N]."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    directions: npt.NDArray[np.float32]


def measure(*, short: bool = False) -> list[Row]:
    count = 12 if short else 60
    with home() as folder:
        write_artifacts(folder, _SHAPE.columns, _SHAPE.taps, _DIRECTIONS, _THRESHOLD)
        signals = _signals(folder)
        steps = Steps(_SHAPE, variety=count)
        sent = steps.take(count)
        with serving(folder) as served, RingPeer(served.address, _SHAPE.columns) as peer:
            given = [flags(peer.step(message)) for message in sent]
    wanted = reference(signals, steps, sent)
    differing = sum(len(ours ^ theirs) for ours, theirs in zip(given, wanted, strict=True))
    judged = count * _SHAPE.rows * sum(len(one.names) for one in signals)
    note = f"of {judged} (request, signal, step), {sum(map(len, wanted))} flagged; reference: numpy float32, scores in float64"
    return [Row("verdicts that differ from the f32 reference", differing, "== 0", differing == 0, note=note)]


def flags(reply: bytes) -> Flags:
    """What an answer says is over its threshold. Raises RuntimeError for a step that was not scored."""
    result = ingest_pb2.StreamResponse.FromString(reply).result
    if result.outcome != ingest_pb2.OUTCOME_SCORED:
        raise RuntimeError(f"a step was not scored: {result.reason} {result.field}")
    return {(verdict.request_id, signal.name) for verdict in result.verdicts for signal in verdict.signals}


def _signals(folder: Path) -> list[Signals]:
    artifacts = [one for one in load_folder(folder, limit=4096) if one.manifest.aggregation is not None]
    made = []
    for where in sorted({one.manifest.where for one in artifacts}):
        members = [one for one in artifacts if one.manifest.where == where]
        kinds = tuple(one.manifest.aggregation.kind.value for one in members if one.manifest.aggregation)
        names = tuple(one.manifest.name for one in members)
        made.append(Signals(names, kinds, np.concatenate([one.directions for one in members], axis=1)))
    return made


def reference(signals: list[Signals], steps: Steps, sent: list[Message]) -> list[Flags]:
    """Of every step: all rows times all directions with numpy, scores over each request's whole history by definition."""
    requests = list(sent[0].batch.segments.request_ids)
    found: list[Flags] = [set() for _ in sent]
    for tap, one in enumerate(signals):
        history = np.stack([_wide(states[tap]) @ one.directions for states in steps.states]).astype(
            np.float64
        )  # [S, T, N]
        for step in range(len(sent)):
            for signal, kind in enumerate(one.kinds):
                if step + 1 >= _WINDOW:
                    scores = _scores(history[: step + 1, :, signal], kind)
                    over = np.flatnonzero(1 / (1 + np.exp(-scores)) > _THRESHOLD).tolist()
                    found[step].update((requests[row], one.names[signal]) for row in over)
    return found


def _wide(elements: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (elements.astype(np.uint32) << 16).view(np.float32)


def _scores(readings: npt.NDArray[np.float64], kind: str) -> npt.NDArray[np.float64]:
    """[T], of readings [steps, T]."""
    how = Aggregation(kind=AggregationKind(kind), window=_WINDOW)
    return np.array([aggregate(column, how) for column in readings.T])
