"""How many rows and columns a forward pass has, told by what goes into the model, or else comes out of it, and by no layer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.tap.faults import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn


class Grid(NamedTuple):
    """[rows, columns]. ``padded``: the call's 2-D mask and position ids speak of these columns."""

    rows: int
    columns: int
    padded: bool = True


def token_grid(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Grid:
    """Of ids or embeddings. Raises Unsupported if there are none."""
    for tokens in (kwargs.get("input_ids"), *args[:1], kwargs.get("inputs_embeds")):
        if tokens is not None:
            return Grid(int(tokens.shape[0]), int(tokens.shape[1]))
    raise Unsupported("a call without input_ids or inputs_embeds")


def encoder_grid(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Grid:
    """Of ids, embeddings, or a spectrogram [rows, mel bins, frames], every piece of which is computed, silence too.

    Raises Unsupported if what goes in does not tell how many positions come out.
    """
    features = kwargs.get("input_features", args[0] if args else None)
    if features is None or features.ndim == 2:
        return token_grid(args, kwargs)
    lengths = getattr(encoder, "_get_feat_extract_output_lengths", None)
    bins = getattr(encoder.config, "num_mel_bins", None)
    if not callable(lengths) or features.ndim != 3 or features.shape[1] != bins:
        raise Unsupported("an encoder whose input does not tell how many positions it has")
    return Grid(int(features.shape[0]), int(lengths(features.shape[2])), padded=False)


def positions_made(output: Any) -> int:
    """How many rows of states a pass has computed, by its output [rows, N, ...]; 0 if it is something else."""
    states = _first(output)
    return int(states.shape[0] * states.shape[1]) if states is not None and states.ndim >= 2 else 0


def rows_made(output: Any) -> int:
    """How many rows its batch had."""
    states = _first(output)
    return int(states.shape[0]) if states is not None else 0


def _first(output: Any) -> torch.Tensor | None:
    import torch

    found = output if isinstance(output, torch.Tensor) else output[0]
    return found if isinstance(found, torch.Tensor) else None


def argument(model: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model is called with under that name, however it is passed. Raises Unsupported if it is not."""
    bound = inspect.signature(type(model).forward).bind_partial(model, *args, **kwargs).arguments
    found = kwargs.get(name, bound.get(name))
    if found is None:
        raise Unsupported(f"a call without {name}")
    return found
