"""What the sidecar makes of a store's texts with a packed artifact: each is a request, read and judged by the real pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from probes.activations.store import ActivationStore
from probes.artifact import load_artifact
from sidecar.clock import SystemClock
from sidecar.snapshot import EndedRequest, SignalScore
from sidecar.types import (
    BatchId,
    ElementType,
    EngineId,
    ModelIdentity,
    Phase,
    RequestId,
    Segments,
    StepBatch,
    TapPoint,
    TapTensor,
)
from tests.hot import Hot

ENGINE = EngineId("engine-0")


def sidecar_scores(artifact: Path, store: ActivationStore, texts: Sequence[int]) -> list[SignalScore]:
    """Of each text, when its request has ended. Its rows come in one step: what is flagged is so for the whole request."""
    ended: list[EndedRequest] = []
    hot = Hot(SystemClock(), ended.append, [load_artifact(artifact, root=artifact)])
    hot.register(model=_model(store))
    for text in texts:
        assert hot.submit(_step(store, text)).scored
        assert hot.pipeline.judge is not None
        hot.pipeline.judge.finish(ENGINE, (RequestId(f"text {text}"),))
        hot.snapshot()
    return list(_only(ended))


def _only(ended: Sequence[EndedRequest]) -> Iterator[SignalScore]:
    for request in ended:
        (score,) = request.scores
        yield score


def _model(store: ActivationStore) -> ModelIdentity:
    told = store.facts.model.model_dump(exclude_none=True)
    return ModelIdentity(width=store.facts.width, **told)


def _step(store: ActivationStore, text: int) -> StepBatch:
    count, skip = int(store.lengths[text]), store.facts.skip_positions
    segments = Segments(
        (RequestId(f"text {text}"),),
        np.zeros(1, np.intp),
        np.array([count], np.intp),
        np.arange(skip, skip + count).astype(np.uint32),
        np.array([Phase.PREFILL], np.int8),
        np.array([skip + count], np.intp),
    )
    tensors = tuple(_tensor(store, text, TapPoint.parse(name)) for name in store.facts.tap_points)
    return StepBatch(BatchId(f"text {text}"), ENGINE, 0, 1, 1, segments, tensors)


def _tensor(store: ActivationStore, text: int, where: TapPoint) -> TapTensor:
    values = store.read(text, where)
    values.flags.writeable = False  # as decoded
    return TapTensor(where, ElementType.F32, values)
