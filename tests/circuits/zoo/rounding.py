"""Weights rounded to int8 and back, with a scale for more or fewer of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_LEVELS = 127
Rounding = Callable[[torch.Tensor], torch.Tensor]  # of a matrix [outputs, inputs]


@contextmanager
def rounded(model: Any, rounding: Rounding) -> Iterator[Any]:
    """A copy in which every linear layer of the blocks is rounded."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in made.named_modules():
            if isinstance(module, torch.nn.Linear) and "head" not in name:
                module.weight.copy_(rounding(module.weight.float()))
    yield made


def _nearest(weight: torch.Tensor, alike: tuple[int, ...]) -> torch.Tensor:
    """To the nearest level. alike: the axes along which weights share a scale."""
    scale = weight.abs().amax(dim=alike, keepdim=True).clamp(min=1e-12) / _LEVELS
    return (weight / scale).round().clamp(-_LEVELS, _LEVELS) * scale


def _grouped(weight: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([_nearest(part, (1,)) for part in weight.split(size, dim=1)], dim=1)


ROUNDINGS: Mapping[str, Rounding] = {
    "each output": partial(_nearest, alike=(1,)),
    "each matrix": partial(_nearest, alike=(0, 1)),
    "each input": partial(_nearest, alike=(0,)),
    "64 inputs of an output": partial(_grouped, size=64),
    "32 inputs of an output": partial(_grouped, size=32),
}
