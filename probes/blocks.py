"""Run the first blocks of a decoder and keep what comes out of some of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.types import FloatArray

if TYPE_CHECKING:
    import torch


class BlockReader:
    """States after chosen blocks, for texts that share a beginning: the beginning is computed once and its cache reused.

    Made by `reading_blocks`. Nothing after the last chosen block is computed.
    """

    def __init__(self, decoder: Any, layers: Sequence[int]) -> None:
        self._decoder = decoder
        self._layers = layers
        self._caught: dict[int, torch.Tensor] = {}
        self._cache: Any = None

    def begin(self, prefix: Sequence[int]) -> dict[int, FloatArray]:
        """Compute the shared beginning; returns its states, float32 [P, D] by layer."""
        if not prefix:
            return {}
        self._cache = self._run([prefix], None)
        return {layer: self._caught[layer][0].numpy() for layer in self._layers}

    def read(self, tails: Sequence[Sequence[int]]) -> dict[int, list[FloatArray]]:
        """States of the texts' remaining tokens, float32 [len(tail), D] each, by layer."""
        cache = copy.deepcopy(self._cache)
        if cache is not None:
            cache.batch_repeat_interleave(len(tails))
        self._run(tails, cache)
        return {
            layer: [self._caught[layer][row, : len(tail)].numpy() for row, tail in enumerate(tails)]
            for layer in self._layers
        }

    def catch(self, layer: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._caught[layer] = states.detach().to("cpu")

    def _run(self, texts: Sequence[Sequence[int]], cache: Any) -> Any:
        """Pad on the right: attention looks only to the left, so no real row ever sees the padding."""
        import torch

        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        return self._decoder(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values


@contextmanager
def reading_blocks(model: Any, layers: Sequence[int]) -> Iterator[BlockReader]:
    """Make a reader of ``layers`` and leave the model as it was found."""
    import torch

    decoder = model.get_decoder()
    blocks = decoder.layers
    reader = BlockReader(decoder, layers)

    def hook(layer: int) -> Any:
        return lambda _block, _inputs, output: reader.catch(layer, output)

    handles = [blocks[layer].register_forward_hook(hook(layer)) for layer in layers]
    decoder.layers = blocks[: max(layers) + 1]
    try:
        with torch.inference_mode():
            yield reader
    finally:
        decoder.layers = blocks
        for handle in handles:
            handle.remove()


def empty_states(width: int) -> FloatArray:
    return np.empty((0, width), np.float32)
