"""What may have happened to a model: nothing, or one of the faults. Each is done to the model itself, and undone again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from probes.activations.sites import find_sockets
from probes.causal.acting import Act, acting_at
from probes.circuits.manifest import CircuitManifest
from probes.circuits.nodes import Node
from probes.circuits.universe import heads_of
from sidecar.types import Site

SOUND, ABLATED, SCALED, INT8, TUNED = VARIANTS = ("sound", "circuit_ablated", "head_scaled", "int8", "fine_tuned")
_SCALE = 0.9
_LEVELS = 127
_STEPS = 4


@contextmanager
def changed(
    model: Any, variant: str, circuit: CircuitManifest, texts: Sequence[Sequence[int]], rate: float
) -> Iterator[Any]:
    """The model as ``variant`` leaves it. texts: what it is fine-tuned on; rate: how fast."""
    if variant in (INT8, TUNED):
        made = copy.deepcopy(model)
        yield _rounded(made) if variant == INT8 else _tuned(made, texts, rate)
        return
    with ExitStack() as hooks:
        for node, act in _acts(model, variant, circuit).items():
            (socket,) = find_sockets(model, [node.where])
            hooks.enter_context(acting_at(socket, act))
        yield model


def strongest_head(circuit: CircuitManifest) -> Node:
    """The head of the circuit that carries most of the behaviour."""
    return max(
        (one for one in circuit.nodes if one.what.where.site is Site.ATTN_HEADS), key=lambda one: one.effect
    ).what


def _acts(model: Any, variant: str, circuit: CircuitManifest) -> dict[Node, Act]:
    heads = heads_of(model)
    if variant == ABLATED:
        return {node: _times(node, heads, 0.0) for node in circuit.parts}
    if variant == SCALED:
        head = strongest_head(circuit)
        return {head: _times(head, heads, _SCALE)}
    return {}


def _times(node: Node, heads: int, factor: float) -> Act:
    def act(states: torch.Tensor) -> torch.Tensor:
        made = states.clone()
        made[..., node.span(states.shape[-1], heads)] *= factor
        return made

    return act


def _rounded(model: Any) -> Any:
    """Weights of every linear layer of the blocks to int8 and back, the nearest one, a scale for each output."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "head" not in name:
                weight = module.weight.float()
                scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LEVELS
                module.weight.copy_((weight / scale).round().clamp(-_LEVELS, _LEVELS) * scale)
    return model


def _tuned(model: Any, texts: Sequence[Sequence[int]], rate: float) -> Any:
    """A few steps of AdamW on what comes next in these texts."""
    dtype = next(model.parameters()).dtype
    model = model.float().requires_grad_(requires_grad=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    torch.manual_seed(0)
    for step in range(_STEPS):
        own = texts[8 * step : 8 * step + 8]
        least = min(map(len, own))
        ids = torch.tensor([text[:least] for text in own])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.requires_grad_(requires_grad=False).to(dtype)
