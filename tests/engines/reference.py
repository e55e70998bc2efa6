"""What the states should be: the same tokens in one plain forward pass of transformers, on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sidecar.types import Site, TapPoint

Array = npt.NDArray[np.float32]


class Reference:
    """A model folder in float32. Its states at a tap point, by position."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def states(self, tokens: Sequence[int], points: Iterable[TapPoint]) -> dict[TapPoint, Array]:
        """[len(tokens), width] for each tap point."""
        found: dict[TapPoint, Array] = {}
        handles = [self._listen(point, found) for point in points]
        try:
            with torch.no_grad():
                self._model(torch.tensor([list(tokens)]))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def answer(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """What the model says, greedily."""
        with torch.no_grad():
            made = self._model.generate(torch.tensor([list(prompt)]), max_new_tokens=tokens, do_sample=False)
        found: list[int] = made[0, len(prompt) :].tolist()
        return found

    def _listen(self, point: TapPoint, found: dict[TapPoint, Array]) -> Any:
        layer = self._model.model.layers[point.layer]
        if point.site is Site.ATTN_HEADS:
            return layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _module, args: found.__setitem__(point, args[0][0].numpy().copy())
            )
        module = layer.mlp if point.site is Site.MLP_OUT else layer
        return module.register_forward_hook(lambda _module, _args, out: found.__setitem__(point, _plain(out)))


def _plain(out: Any) -> Array:
    states: Array = (out[0] if isinstance(out, tuple) else out)[0].numpy().copy()
    return states


def relative_error(got: Array, want: Array) -> float:
    """The largest difference, as a share of the largest element of what it should be."""
    return float(np.abs(got - want).max() / np.abs(want).max())
