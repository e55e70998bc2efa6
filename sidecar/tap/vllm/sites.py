"""Where the states of a tap point are found in a vLLM model, and which way they are taken out of it.

- **auxiliary**: the residual stream as the model itself hands it out for a drafter: an output of the compiled graph, so CUDA graphs
  replay it. Needs a model that can, and nobody else who asks for it.
- **operator**: an operator of ours, called from a hook, traced into the graph: it copies the rows to a buffer that stays where it
  is, so that a replayed graph copies them too. For heads and MLPs, for models without auxiliary outputs, and for pipeline stages.
- **hook**: a plain forward hook. What a compiled model makes of it is the compiler's business, and may be nothing: only where
  nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from sidecar.tap import sites
from sidecar.tap.sites import NoPartError, Socket
from sidecar.types import TapPoint


class Way(StrEnum):
    """How the states of a tap point leave the model."""

    AUXILIARY = "auxiliary"
    OPERATOR = "operator"
    HOOK = "hook"


class NotHereError(Exception):
    """This model, or this process of it, has no such tap point."""


def find_layers(model: Any) -> dict[int, nn.Module]:
    """The blocks that this process has, by their place in the whole model: a stage of a pipeline has some of them.

    Raises NotHereError if the model has no list of blocks where vLLM's language models have it.
    """
    inner = model.get_language_model() if hasattr(model, "get_language_model") else model
    for holder in (getattr(inner, "model", inner), inner, getattr(inner, "transformer", inner)):
        layers = getattr(holder, "layers", None) or getattr(holder, "h", None)
        if isinstance(layers, nn.ModuleList):
            return {i: layer for i, layer in enumerate(layers) if type(layer).__name__ != "PPMissingLayer"}
    raise NotHereError(f"{type(model).__name__} has no list of blocks")


def find_socket(layers: dict[int, nn.Module], point: TapPoint) -> Socket:
    """Raises NotHereError, naming what is missing."""
    block = layers.get(point.layer)
    if block is None:
        raise NotHereError(f"{point.name}: this process has blocks {min(layers)} to {max(layers)}")
    try:
        return sites.find_socket(block, point.site)
    except NoPartError as missing:
        raise NotHereError(f"{point.name}: {missing}") from None


def hook_socket(socket: Socket, take: Callable[[torch.Tensor, torch.Tensor | None], None]) -> Any:
    """Call ``take(states, what is to be added)`` whenever the module runs: its output may be a pair. Returns the hook's handle."""
    if socket.reads_input:
        return socket.module.register_forward_pre_hook(lambda _module, args: take(args[0], None))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            take(output[0], output[1] if len(output) > 1 and isinstance(output[1], torch.Tensor) else None)
        else:
            take(output, None)

    return socket.module.register_forward_hook(after)
