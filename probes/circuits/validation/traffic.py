"""Traffic that does not use a circuit: rows at its tokens, those left out at which the circuit turns out to be at work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.activations.sites import find_sockets
from probes.causal.acting import Act, acting_at
from probes.circuits.nodes import Node
from probes.circuits.replacing import Ablation, ablation, replacing
from probes.circuits.running import Decoder, Prompts
from probes.errors import LabError
from sidecar.circuits.activity import SINKS
from sidecar.types import FloatArray, IndexArray, TapPoint

if TYPE_CHECKING:
    import torch

# Nats that a token's own log-probability loses when the circuit is ablated, from which on the token counts as made by it.
AT_WORK = 0.5
_AT_ONCE = 8  # texts: the logits of all their tokens are held


@dataclass(frozen=True, slots=True)
class Idle:
    """Rows [T, width] by tap point of tokens that did without the circuit. texts: which text each is of, [T].

    used: rows of the other tokens, at which the circuit was at work, and which texts these are of.
    """

    rows: Mapping[TapPoint, FloatArray]
    texts: IndexArray
    used: Mapping[TapPoint, FloatArray]
    used_texts: IndexArray

    def half(self, side: int) -> dict[TapPoint, FloatArray]:
        """The rows of every other text, from the first (0) or the second (1) on."""
        return {point: rows[self.texts % 2 == side] for point, rows in self.rows.items()}

    def everything(self, point: TapPoint) -> tuple[FloatArray, IndexArray]:
        """Rows of all tokens at one tap point, and which text each is of: a circuit at work is nothing unusual."""
        rows = np.concatenate([self.rows[point], self.used[point]])
        return rows, np.concatenate([self.texts, self.used_texts])


def idle(
    decoder: Decoder, texts: Sequence[Sequence[int]], circuit: Collection[Node], points: Sequence[TapPoint]
) -> Idle:
    """Read texts (token ids), from each the tokens behind the attention sinks whose next token is known.

    A token is left out if ablating the circuit (each node at its mean over these texts) makes the token that came next less likely
    by `AT_WORK` nats. Raises LabError if nothing is left.
    """
    long_enough = sorted((text for text in texts if len(text) > SINKS + 1), key=len)
    parts = [
        _part(decoder, long_enough[at : at + _AT_ONCE], at, circuit, points)
        for at in range(0, len(long_enough), _AT_ONCE)
    ]
    kept = sum(len(part.texts) for part in parts)
    if not kept:
        raise LabError("no token of the traffic does without the circuit")
    rows, used = (
        {point: np.concatenate([getattr(part, name)[point] for part in parts]) for point in points}
        for name in ("rows", "used")
    )
    texts_of, used_of = (np.concatenate([getattr(part, name) for part in parts]) for name in ("texts", "used_texts"))
    return Idle(rows, texts_of, used, used_of)


def _part(
    decoder: Decoder, texts: Sequence[Sequence[int]], first: int, circuit: Collection[Node], points: Sequence[TapPoint]
) -> Idle:
    import torch

    prompts = _prompts(texts)
    means = ablation(Ablation.MEAN, decoder, sorted({node.where for node in circuit}), prompts)
    caught: dict[TapPoint, torch.Tensor] = {}
    before = _next(decoder, prompts, {point: _catching(point, caught) for point in points})
    after = _next(decoder, prompts, replacing(circuit, means, decoder.heads))
    known = prompts.real[:, 1:].clone()  # [B, T - 1]
    known[:, :SINKS] = False
    used = (before - after >= AT_WORK) & known
    kept = known & ~used
    owners = torch.arange(first, first + len(texts))[:, None].expand_as(kept)
    rows, others = (
        {point: states[:, :-1][chosen].float().numpy().copy() for point, states in caught.items()}
        for chosen in (kept, used)
    )
    idle_of, used_of = (owners[chosen].numpy().astype(np.intp) for chosen in (kept, used))
    return Idle(rows, idle_of, others, used_of)


def _next(decoder: Decoder, prompts: Prompts, acts: Mapping[TapPoint, Act]) -> torch.Tensor:
    """Log-probability of the token that came next, at every position but the last, [B, T - 1]."""
    import torch

    with ExitStack() as hooks:
        hooks.enter_context(torch.inference_mode())
        sockets = find_sockets(decoder.model, list(acts))
        for socket, act in zip(sockets, acts.values(), strict=True):
            hooks.enter_context(acting_at(socket, act))
        logits = decoder.model(input_ids=prompts.ids, use_cache=False).logits[:, :-1]
        logits = logits.float()
        told: torch.Tensor = logits.gather(2, prompts.ids[:, 1:, None])[..., 0] - logits.logsumexp(dim=2)
        return told


def _catching(point: TapPoint, caught: dict[TapPoint, torch.Tensor]) -> Act:
    def catching(states: torch.Tensor) -> torch.Tensor:
        caught[point] = states.detach().clone()
        return states

    return catching


def _prompts(texts: Sequence[Sequence[int]]) -> Prompts:
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts])
    nothing = torch.zeros((len(texts), 1), dtype=torch.long)  # no answer is asked for
    return Prompts(ids, torch.tensor([len(text) - 1 for text in texts]), nothing, nothing)
