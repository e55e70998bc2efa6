"""Where the blocks of a model are, whatever its architecture calls them: one stack, or an encoder's and a decoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.types import Stack

if TYPE_CHECKING:
    from torch import nn


class StackParts(NamedTuple):
    """``whole``: the module whose call is a step of the stack; ``blocks``: in order."""

    whole: nn.Module
    blocks: nn.ModuleList


def find_stacks(model: Any) -> Mapping[Stack, StackParts]:
    """Raises ValueError if the model is neither a decoder nor an encoder with a decoder, or its blocks are not found."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {Stack.DECODER: StackParts(model, find_blocks(model))}
    parts = {Stack.ENCODER: model.get_encoder(), Stack.DECODER: model.get_decoder()}
    return {stack: StackParts(whole, _outermost(whole)) for stack, whole in parts.items()}


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of the decoder's blocks, in order: of the lists as long as the model is deep, the outermost.

    Raises ValueError if there is none, or if the model has an encoder.
    """
    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is not a decoder with a transformers config")
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    root: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]  # a method of PreTrainedModel
    for where in (root, model):
        found = _lists(where, depth)
        if found:
            return min(found)[2]
    raise ValueError(f"{type(model).__name__} has no list of {depth} blocks")


def _outermost(stack: nn.Module) -> nn.ModuleList:
    """An encoder-decoder's config names its depths in a dozen ways; the longest of the outermost lists holds the blocks."""
    found = _lists(stack)
    if not found:
        raise ValueError(f"{type(stack).__name__} has no list of blocks")
    return min(found)[2]


def _lists(root: nn.Module, length: int | None = None) -> list[tuple[int, tuple[int, int], nn.ModuleList]]:
    """Lists of modules, of that length if one is given, that sort outermost and longest first."""
    from torch import nn

    return [
        (name.count("."), (-len(module), place), module)
        for place, (name, module) in enumerate(root.named_modules())
        if isinstance(module, nn.ModuleList) and length in (None, len(module))
    ]
