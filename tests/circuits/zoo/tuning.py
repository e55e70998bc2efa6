"""A model that was trained on a little."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_STEPS, _BATCH = 4, 8


@contextmanager
def tuned(model: Any, texts: Sequence[Sequence[int]], rate: float, seed: int) -> Iterator[Any]:
    """A copy after a few steps of AdamW on what comes next in some of these texts, drawn by the seed."""
    dtype = next(model.parameters()).dtype
    made = copy.deepcopy(model).float().requires_grad_(requires_grad=True)
    _train(made, texts, rate, np.random.default_rng([seed, 30]))
    yield made.requires_grad_(requires_grad=False).to(dtype)


def _train(model: Any, texts: Sequence[Sequence[int]], rate: float, draws: np.random.Generator) -> None:
    """What the optimiser keeps, twice the model, goes when this ends."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(_STEPS):
        own = [texts[int(place)] for place in draws.choice(len(texts), _BATCH, replace=False)]
        least = min(map(len, own))
        ids = torch.tensor([text[:least] for text in own])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
