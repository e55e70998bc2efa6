"""A decoder that goes on from a probe's first tap point: what lies below is computed once, what lies above once for each edit.

The model's own forward runs each time, with its blocks below that tap point made to return at once what they returned the first
time. So embeddings, masks, positions, the last norm and the head are the model's own, whatever its architecture. What all prompts
begin with is run once for each edit, and its keys and values serve every prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.activations.sites import find_sockets
from probes.causal.acting import Act, acting_after, acting_at, acting_before, returning
from probes.causal.batches import Batch, beginning, shared_beginning, tails
from probes.causal.edits import Edit, Edits
from probes.errors import LabError
from probes.stages import Places, named
from sidecar.types import FloatArray, Site, TapPoint

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
# The same float32 products on the same numbers: only the order of sums differs. Of the largest log-odds.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the first forward of a batch left: the output of the last block below (None if there is none), states at each site."""

    batch: Batch
    below: torch.Tensor | None
    sites: tuple[torch.Tensor, ...]


class Resumed:
    """Once begun: log_odds, float64 [prompts], of the untouched model; later_means, by block, of what later blocks put out."""

    def __init__(self, model: Any, everywhere: Places, answers: tuple[list[int], list[int]], skip: int) -> None:
        from sidecar.tap.transformers.blocks import find_blocks

        self.everywhere = everywhere
        self.skip = skip
        self.log_odds: Array = np.zeros(0)
        self.later_means: dict[int, Array] = {}
        self._sockets = find_sockets(model, everywhere)
        self._blocks: Any = find_blocks(model)
        self._model = model
        self._answers = answers
        self._head = _head(model)
        self._beginning: _Seen | None = None
        self._lower: list[Any] = []  # keys and values of the beginning in the blocks below
        self._seen: list[_Seen] = []

    @property
    def skipped(self) -> int:
        """How many blocks are not computed again."""
        first = min(self.everywhere)
        return first.layer + 1 if first.site is Site.RESID_POST else first.layer

    @cached_property
    def later(self) -> Mapping[int, int]:
        """Blocks after tap points whose outputs lie in the same space: of each, the number of the nearest tap point below.

        A block whose output is itself a tap point is none of them.
        """
        starts = {Site.RESID_POST: 1, Site.MLP_OUT: 0}  # blocks after the tap point's own
        found: dict[int, int] = {}
        for where in sorted(self.everywhere):
            if where.site in starts:
                first, number = where.layer + starts[where.site], self.everywhere.index(where)
                found |= dict.fromkeys(range(first, len(self._blocks)), number)
        return {layer: number for layer, number in found.items() if TapPoint(layer) not in self.everywhere}

    def begin(self, prompts: Sequence[list[int]], advance: Callable[[int], None]) -> None:
        """Run the untouched model over all prompts (token ids; each longer than ``skip``) and keep what edits go on from.

        Raises LabError if going on without an edit does not give what the whole model gives, prompt by prompt.
        """
        whole = self._plainly(next(tails(prompts, 0)))
        for shared in dict.fromkeys((shared_beginning(prompts), 0)):  # not every cache can be shared
            self._prepare(prompts, shared, advance)
            if self._agrees(whole):
                return
        raise LabError(
            f"going on from {named(self.everywhere)} does not give what the whole model gives: not supported"
        )

    def run(self, edits: Edits | None) -> Array:
        """Log-odds of every prompt, float64 [prompts], with edits at work. Raises LabError if they are not finite."""
        cache = None if self._beginning is None else self._again(self._beginning, edits, None)[1]
        found = np.zeros(len(self.log_odds))
        for seen in self._seen:
            found[list(seen.batch.prompts)] = self._again(seen, edits, cache)[0]
        if not np.isfinite(found).all():
            raise LabError(f"edits at {named(self.everywhere)} drive the model to log-odds that are not finite")
        return found

    def states(self, number: int = 0) -> list[FloatArray]:
        """Of every prompt, the untouched states at a tap point, by its number, from ``skip`` on, float32 [n, D]."""
        head = [] if self._beginning is None else [self._beginning.sites[number][0].float().numpy()]
        found: dict[int, FloatArray] = {}
        for seen in self._seen:
            for row, (prompt, end) in enumerate(zip(seen.batch.prompts, seen.batch.ends, strict=True)):
                rows = np.concatenate([*head, seen.sites[number][row, : end + 1].float().numpy()])
                found[prompt] = rows[self.skip :]
        return [found[prompt] for prompt in range(len(found))]

    def _prepare(self, prompts: Sequence[list[int]], shared: int, advance: Callable[[int], None]) -> None:
        means = {layer: _Mean() for layer in self.later}
        self.log_odds = np.zeros(len(prompts))
        self._beginning, self._seen, self._lower, cache = None, [], [], None
        if shared:
            self._beginning, _, cache = self._first(beginning(prompts, shared), None, means, len(prompts))
            self._lower = list(cache.layers[: self.skipped])
        for batch in tails(prompts, shared):
            seen, odds, _ = self._first(batch, cache, means, 1)
            self._seen.append(seen)
            self.log_odds[list(batch.prompts)] = odds
            advance(len(batch.prompts))
        self.later_means = {layer: one.mean for layer, one in means.items()}

    def _first(self, batch: Batch, cache: Any, means: Mapping[int, _Mean], weight: int) -> tuple[_Seen, Array, Any]:
        caught: dict[str, torch.Tensor] = {}

        def catch(name: str) -> Act:
            def act(states: torch.Tensor) -> torch.Tensor:
                caught[name] = states.detach().clone()
                return states

            return act

        with ExitStack() as hooks:
            for socket in self._sockets:
                hooks.enter_context(acting_at(socket, catch(socket.point.name)))
            if self.skipped:
                hooks.enter_context(acting_after(self._blocks[self.skipped - 1], catch("below")))
            for layer, one in means.items():
                hooks.enter_context(acting_after(self._blocks[layer], self._adding(one, batch, weight)))
            odds, after = self._answered(batch, cache)
        missing = [where.name for where in self.everywhere if where.name not in caught]
        if missing:
            raise LabError(f"the model ran, but nothing came by at {', '.join(missing)}")
        return _Seen(batch, caught.get("below"), tuple(caught[where.name] for where in self.everywhere)), odds, after

    def _adding(self, one: _Mean, batch: Batch, weight: int) -> Act:
        def act(states: torch.Tensor) -> torch.Tensor:
            for row, end in enumerate(batch.ends):
                one.add(states[row, max(0, self.skip - batch.first) : end + 1].double().numpy(), weight)
            return states

        return act

    def _again(self, seen: _Seen, edits: Edits | None, cache: Any) -> tuple[Array, Any]:
        with ExitStack() as hooks:
            if seen.below is not None:
                hooks.enter_context(returning(self._blocks[: self.skipped], seen.below))
            if edits is not None:
                for socket, edit in zip(self._sockets, edits.here, strict=True):
                    hooks.enter_context(acting_at(socket, _bound(edit, seen.batch)))
                for layer, edit in edits.later.items():
                    hooks.enter_context(acting_after(self._blocks[layer], _bound(edit, seen.batch)))
            odds, after = self._answered(seen.batch, cache)
        if after is not None and not seen.batch.prompts:
            after.layers[: self.skipped] = self._lower
        return odds, after

    def _answered(self, batch: Batch, cache: Any) -> tuple[Array, Any]:
        """Log-odds after each prompt of the batch, and for a beginning its keys and values."""
        import torch

        with torch.inference_mode():
            if cache is not None:
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(len(batch.prompts))
            keeps = cache is not None or not batch.prompts
            rows, ends = torch.arange(len(batch.ends)), torch.tensor(batch.ends)
            # Of each prompt the last position alone meets the head: with 50,000 words it costs as much as several blocks.
            with acting_before(self._head, lambda states: states[rows, ends][:, None]):
                out = self._model(input_ids=batch.ids, past_key_values=cache, use_cache=keeps)
            last = out.logits[:, 0]  # [B, vocabulary]
            positive, negative = (torch.logsumexp(last[:, side].double(), dim=1) for side in self._answers)
        return (positive - negative).numpy(), None if batch.prompts else out.past_key_values

    def _plainly(self, batch: Batch) -> dict[int, float]:
        """Of a batch of whole prompts, with nothing shared or skipped: what all else must agree with."""
        return dict(zip(batch.prompts, self._answered(batch, None)[0].tolist(), strict=True))

    def _agrees(self, whole: Mapping[int, float]) -> bool:
        prompts = list(whole)
        wanted = np.array([whole[prompt] for prompt in prompts])
        allowed = _TOLERANCE * (1 + np.abs(wanted).max())
        found = (self.log_odds[prompts], self.run(None)[prompts])
        return all(bool(np.abs(odds - wanted).max() <= allowed) for odds in found)


class _Mean:
    """A running mean of rows, each counted ``weight`` times."""

    def __init__(self) -> None:
        self.mean: Array = np.zeros(1)
        self._rows = 0

    def add(self, rows: Array, weight: int) -> None:
        self._rows += weight * len(rows)
        if len(rows):
            self.mean = self.mean + weight * (rows.sum(axis=0) - len(rows) * self.mean) / self._rows


def _bound(edit: Edit, batch: Batch) -> Act:
    return lambda states: edit(states, batch.prompts, batch.first)


def _head(model: Any) -> Any:
    """The module that turns states into words."""
    head = model.get_output_embeddings()
    if head is None:
        raise LabError(f"{type(model).__name__} has no head that answers in words")
    return head
