"""The test's own hooks at the three sites of a tiny decoder's block: what a tap must have captured there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sidecar.types import Site, TapPoint

LAYER = 1
HEADS, MLP = TapPoint(LAYER, Site.ATTN_HEADS), TapPoint(LAYER, Site.MLP_OUT)
POINTS = (TapPoint(LAYER), HEADS, MLP)
# By full name, so that a list of usual names cannot agree with itself: (block, output projection of attention, MLP).
PARTS = {
    "llama": ("model.layers.1", "self_attn.o_proj", "mlp"),
    "qwen2": ("model.layers.1", "self_attn.o_proj", "mlp"),
    "gpt2": ("transformer.h.1", "attn.c_proj", "mlp"),
    "gpt_neox": ("gpt_neox.layers.1", "attention.dense", "mlp"),
    "mixtral": ("model.layers.1", "self_attn.o_proj", "mlp"),
}
Seen = dict[TapPoint, list[npt.NDArray[np.float32]]]


@contextmanager
def seeing(model: Any, architecture: str) -> Iterator[Seen]:
    """Every row [T, D] that passes, step by step, by hooks of the test's own."""
    block, out, mlp = PARTS[architecture]
    seen: Seen = {point: [] for point in POINTS}

    def note(point: TapPoint, states: torch.Tensor) -> None:
        seen[point].append(states.detach().reshape(-1, states.shape[-1]).float().numpy().copy())

    handles = [
        model.get_submodule(block).register_forward_hook(
            lambda _m, _a, o: note(POINTS[0], o[0] if isinstance(o, tuple) else o)
        ),
        model.get_submodule(f"{block}.{out}").register_forward_pre_hook(lambda _m, args: note(HEADS, args[0])),
        model.get_submodule(f"{block}.{mlp}").register_forward_hook(
            lambda _m, _a, o: note(MLP, o[0] if isinstance(o, tuple) else o)
        ),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
