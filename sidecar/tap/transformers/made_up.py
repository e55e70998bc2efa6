"""Made-up input: the least that a model can be called with, whatever it is called with otherwise."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.types import Stack

if TYPE_CHECKING:
    import torch

_TOKENS = 4


class NoTrialError(LookupError):
    """This model cannot be tried with what is made up; the text says why."""


class MadeUp(NamedTuple):
    """Arguments of one call, and how many rows each stack makes of them."""

    arguments: Mapping[str, Any]
    rows: Mapping[Stack, int]


def made_up(model: Any) -> MadeUp:
    """A sequence of four tokens that no medium and no end is among; for an encoder of speech, a silent spectrogram.

    model: whatever can be tapped. Nothing is computed. Raises NoTrialError.
    """
    takes = inspect.signature(type(getattr(model, "_orig_mod", model)).forward).parameters
    arguments: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    rows = {Stack.DECODER: _TOKENS}
    first = _first(model, takes)
    if first == "input_features":
        arguments[first], rows[Stack.ENCODER] = _silence(model.get_encoder())
    else:
        arguments[first] = _tokens(model)
        rows[Stack.ENCODER] = _TOKENS
    if "decoder_input_ids" in takes:
        arguments["decoder_input_ids"] = _tokens(model)
    return MadeUp(arguments, rows)


def _first(model: Any, takes: Mapping[str, Any]) -> str:
    first = str(getattr(model, "main_input_name", ""))
    if first not in takes:
        required = (name for name, one in takes.items() if name != "self" and one.default is one.empty)
        first = next(required, first)
    if first not in ("input_ids", "input_features"):
        raise NoTrialError(f"a model of {first}, which nobody can make up for every model")
    return first


def _tokens(model: Any) -> torch.Tensor:
    import torch

    table = model.get_input_embeddings().weight
    special = set(_special(model.config)) | set(_special(model.config.get_text_config(decoder=True)))
    ids = list(itertools.islice((one for one in range(table.shape[0]) if one not in special), _TOKENS))
    if len(ids) < _TOKENS:
        raise NoTrialError("a vocabulary of next to nothing")
    return torch.tensor([ids], device="cpu" if table.is_meta else table.device)


def _special(config: Any) -> Iterator[int]:
    """Whatever the config gives a meaning to: padding, ends, places of images and sound."""
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_index", "_token_ids")):
            yield from value if isinstance(value, (list, tuple)) else (value,)


def _silence(encoder: Any) -> tuple[torch.Tensor, int]:
    """[1, mel bins, frames], as many as make all the positions that the encoder has: Whisper's takes no fewer."""
    import torch

    try:
        positions = int(encoder.config.max_source_positions)
        frames = positions * int(encoder.conv1.stride[0]) * int(encoder.conv2.stride[0])
        bins, weight = int(encoder.config.num_mel_bins), encoder.conv1.weight
    except AttributeError as missing:
        raise NoTrialError("an encoder of speech that does not tell how much of it it takes") from missing
    return torch.zeros(1, bins, frames, dtype=weight.dtype, device=weight.device), positions
