"""Hidden states of many short sessions and of rounds of canaries, computed once for each model and kind of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.activations.sites import find_sockets
from probes.causal.acting import Act, acting_at
from sidecar.circuits.activity import SINKS
from sidecar.live.canary_rows import LAST
from sidecar.types import FloatArray, PositionArray, TapPoint

ROWS = 8  # of a session, spread over it
_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Batching:
    """How an engine takes the prompts of canaries: so many together, beside so many requests of traffic."""

    prompts: int
    others: int = 0


# An engine's reference is not made in the company that its later rounds have: none of these is among those.
RECORDED = (Batching(1), Batching(4), Batching(8))
ANSWERED = (Batching(2), Batching(3), Batching(5, others=3))


@dataclass(frozen=True, slots=True)
class Pool:
    """Sessions of one kind. states: float32 [n, ROWS, width] by tap point; positions: [n, ROWS]."""

    states: Mapping[TapPoint, FloatArray]
    positions: PositionArray

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class Round:
    """Prompts of canaries, the last tokens of each. lengths: [n]; states: float32 [n, LAST, width] by tap point."""

    states: Mapping[TapPoint, FloatArray]
    lengths: tuple[int, ...]


def pool_of(model: Any, texts: Sequence[Sequence[int]], points: Sequence[TapPoint]) -> Pool:
    """A few positions of each text behind the attention sinks."""
    at = np.stack([np.linspace(SINKS, len(text) - 1, ROWS).astype(np.uint32) for text in texts])
    kept: dict[TapPoint, list[FloatArray]] = {point: [] for point in points}
    for start in range(0, len(texts), _TOGETHER):
        told = states_of(model, texts[start : start + _TOGETHER], points)
        for point, rows in told.items():
            kept[point] += [row[places] for row, places in zip(rows, at[start : start + _TOGETHER], strict=True)]
    return Pool({point: np.stack(rows) for point, rows in kept.items()}, at)


def round_of(
    model: Any,
    prompts: Sequence[Sequence[int]],
    traffic: Sequence[Sequence[int]],
    points: Sequence[TapPoint],
    batching: Batching,
) -> Round:
    """The prompts in such batches, which change the last digits. traffic: what else may be in one, cut to the length of prompts."""
    longest = max(map(len, prompts))
    others = [text[:longest] for text in traffic[: batching.others]]
    kept: dict[TapPoint, list[FloatArray]] = {point: [] for point in points}
    for start in range(0, len(prompts), batching.prompts):
        own = prompts[start : start + batching.prompts]
        for point, rows in states_of(model, [*own, *others], points).items():
            kept[point] += [row[len(text) - LAST : len(text)] for row, text in zip(rows, own, strict=False)]
    return Round({point: np.stack(rows) for point, rows in kept.items()}, tuple(map(len, prompts)))


def states_of(model: Any, texts: Sequence[Sequence[int]], points: Sequence[TapPoint]) -> dict[TapPoint, FloatArray]:
    """float32 [texts, longest, width] by tap point. Padded on the right, which no real position sees."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
    caught: dict[TapPoint, FloatArray] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for socket in find_sockets(model, list(points)):
            hooks.enter_context(acting_at(socket, _catching(socket.point, caught)))
        model.base_model(input_ids=ids, use_cache=False)
    return caught


def _catching(point: TapPoint, caught: dict[TapPoint, FloatArray]) -> Act:
    def catching(states: torch.Tensor) -> torch.Tensor:
        caught[point] = states.detach().float().numpy().copy()
        return states

    return catching
