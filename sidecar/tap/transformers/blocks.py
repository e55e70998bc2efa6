"""Where the blocks of a decoder are, whatever its architecture calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of the decoder's blocks, in order: of the lists as long as the model is deep, the outermost.

    Raises ValueError if there is none, or if the model has an encoder.
    """
    from torch import nn

    config: Any = getattr(model, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is not a decoder with a transformers config")
    depth = int(config.get_text_config(decoder=True).num_hidden_layers)
    root: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]  # a method of PreTrainedModel
    for where in (root, model):
        found = [
            (name.count("."), module)
            for name, module in where.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
        if found:
            return min(found, key=lambda pair: pair[0])[1]
    raise ValueError(f"{type(model).__name__} has no list of {depth} blocks")
