"""Run a decoder as far as it must be and keep what passes the chosen tap points."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.activations.sites import Socket, find_sockets
from probes.errors import LabError
from sidecar.types import FloatArray, TapPoint

if TYPE_CHECKING:
    import torch

# Attention over all that came before, or over the last of it: what a cache of keys and values is all the memory of.
_CACHED = frozenset({"full_attention", "sliding_attention"})
# Two ways to compute the same rows differ by rounding, 1e-6 of their size in float32 and 1e-2 in bfloat16; a way that is
# wrong, by about their size.
_SAME = 0.1


class StateReader:
    """Reads texts together; made by `reading`, on whose thread it is used. skip: rows that are left out at a text's beginning."""

    def __init__(self, decoder: Any, sockets: Sequence[Socket], skip: int) -> None:
        self._decoder = decoder
        self._names = [socket.point.name for socket in sockets]
        self._skip = skip
        self._prefix: list[int] = []
        self._prefix_rows: dict[str, FloatArray] = {}  # from position 0
        self._cache: Any = None
        self._spans: list[tuple[int, int]] = []
        self._caught: dict[str, list[FloatArray]] = {}

    @property
    def shared(self) -> int:
        """Tokens of each text that are not computed again."""
        return len(self._prefix)

    def share(self, prefix: Sequence[int], sample: Sequence[int]) -> bool:
        """Compute once what all texts that follow begin with; False, and nothing changes, if this model cannot.

        sample: one of these texts, longer than ``prefix``; its rows are computed both ways and must be the same.
        """
        if not prefix or not _has_plain_cache(self._decoder):
            return False
        wanted = self.read([sample])
        self._begin(prefix)
        found = self.read([sample])
        if all(_same(found[name][0], wanted[name][0]) for name in self._names):
            return True
        self._prefix, self._prefix_rows, self._cache = [], {}, None
        return False

    def read(self, texts: Sequence[Sequence[int]]) -> dict[str, list[FloatArray]]:
        """By tap point the rows of each text, float32 [n, width], owned by the caller; texts are non-empty token ids.

        Padding goes to the right: attention looks only to the left, so no real row ever sees it. Nothing that lies behind the
        last tap point is computed. Once a beginning is shared, every text must begin with it and be longer.
        """
        starts = [min(self._skip, len(text) - 1) for text in texts]
        cache = copy.deepcopy(self._cache)
        if cache is not None:
            cache.batch_repeat_interleave(len(texts))
        spans = [
            (max(0, start - self.shared), len(text) - self.shared) for start, text in zip(starts, texts, strict=True)
        ]
        caught = self._run([text[self.shared :] for text in texts], spans, cache)
        if not self.shared:
            return caught
        return {
            name: [
                np.concatenate([self._prefix_rows[name][start:], rows])
                for start, rows in zip(starts, of_texts, strict=True)
            ]
            for name, of_texts in caught.items()
        }

    def catch(self, name: str, states: torch.Tensor) -> None:
        """Copy the real rows at once: the model may go on in place."""
        import torch

        self._caught[name] = [
            states[row, start:stop].detach().to("cpu", torch.float32, copy=True).numpy()
            for row, (start, stop) in enumerate(self._spans)
        ]
        if len(self._caught) == len(self._names):
            raise _EnoughError

    def _begin(self, prefix: Sequence[int]) -> None:
        from transformers import DynamicCache

        cache = DynamicCache(config=self._decoder.config)
        caught = self._run([prefix], [(0, len(prefix))], cache)
        self._prefix, self._cache = list(prefix), cache
        self._prefix_rows = {name: rows[0] for name, rows in caught.items()}

    def _run(
        self, texts: Sequence[Sequence[int]], spans: list[tuple[int, int]], cache: Any
    ) -> dict[str, list[FloatArray]]:
        import torch

        self._spans, self._caught = spans, {}
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        with suppress(_EnoughError):
            self._decoder(input_ids=ids.to(self._decoder.device), past_key_values=cache, use_cache=cache is not None)
        if silent := [name for name in self._names if name not in self._caught]:
            raise LabError(f"{silent[0]}: nothing passes there when the model runs")
        return self._caught


class _EnoughError(Exception):
    """Every tap point has been read; the rest of the model is not wanted."""


@contextmanager
def reading(model: Any, points: Sequence[TapPoint], skip: int) -> Iterator[StateReader]:
    """Make a reader of the tap points and leave the model as it was found. Raises LabError as `find_sockets` does."""
    import torch

    sockets = find_sockets(model, points)
    reader = StateReader(model.get_decoder(), sockets, skip)
    handles = [_hook(socket, reader) for socket in sockets]
    try:
        with torch.inference_mode():
            yield reader
    finally:
        for handle in handles:
            handle.remove()


def widths(model: Any, points: Sequence[TapPoint]) -> dict[str, int]:
    """How wide each tap point's rows are, found by running one token."""
    with reading(model, points, 0) as reader:
        return {name: rows[0].shape[1] for name, rows in reader.read([[0]]).items()}


def _hook(socket: Socket, reader: StateReader) -> Any:
    name = socket.point.name
    if socket.reads_input:
        return socket.module.register_forward_pre_hook(lambda _module, inputs: reader.catch(name, inputs[0]))
    return socket.module.register_forward_hook(lambda _module, _inputs, output: reader.catch(name, _first(output)))


def _first(output: Any) -> torch.Tensor:
    """Some blocks return their states and more beside them."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _has_plain_cache(decoder: Any) -> bool:
    kinds = getattr(decoder.config, "layer_types", None) or ()
    return not getattr(decoder, "_is_stateful", False) and set(kinds) <= _CACHED


def _same(one: FloatArray, other: FloatArray) -> bool:
    return float(np.linalg.norm(one - other)) <= _SAME * float(np.linalg.norm(other))
