"""What nodes are made to put out instead of their own: another run's values, means, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from probes.causal.acting import Act
from probes.circuits.nodes import Node, by_point
from probes.circuits.running import Decoder, Prompts
from sidecar.types import TapPoint

if TYPE_CHECKING:
    import torch


class Ablation(StrEnum):
    """What an ablated node puts out."""

    RESAMPLE = "resample"  # what it puts out on the pair's corrupt prompt
    MEAN = "mean"  # its mean over prompts and positions, the first position apart: there lies what attention rests on
    ZERO = "zero"


def replacing(
    nodes: Iterable[Node],
    values: Mapping[TapPoint, torch.Tensor],
    heads: int,
    positions: torch.Tensor | None = None,
) -> dict[TapPoint, Act]:
    """Acts for `Decoder.metrics` that set these nodes to ``values`` and leave all others of their tap points alone.

    values: by tap point whole rows, [B, T, width] or what broadcasts to it. positions: bool [B, T]; None for all.
    """
    return {point: _act(those, values[point], heads, positions) for point, those in by_point(nodes).items()}


def one_each(nodes: Sequence[Node], values: torch.Tensor, heads: int) -> Act:
    """An act on a batch of len(nodes) x B rows, all prompts for the first node, then all for the second: each sets its own.

    nodes: of one tap point. values: that tap point's rows, [B, T, width].
    """

    def act(states: torch.Tensor) -> torch.Tensor:
        changed = states.clone().reshape(len(nodes), *values.shape)
        for number, node in enumerate(nodes):
            span = node.span(states.shape[-1], heads)
            changed[number, ..., span] = values[..., span].to(states.dtype)
        return changed.reshape(states.shape)

    return act


def ablation(
    kind: Ablation, decoder: Decoder, points: Sequence[TapPoint], others: Prompts
) -> dict[TapPoint, torch.Tensor]:
    """Values for `replacing`. others: for RESAMPLE the corrupt prompts, row by row; for MEAN those that the mean is over.

    Shapes: RESAMPLE [B, T, width]; MEAN and ZERO [T, width], T that of ``others``.
    """
    import torch

    states = decoder.read(others, points)[1]
    if kind is Ablation.RESAMPLE:
        return states
    if kind is Ablation.ZERO:
        return {point: torch.zeros_like(rows[0]) for point, rows in states.items()}
    real = others.real
    real[:, 0] = False
    return {point: _mean(rows, real) for point, rows in states.items()}


def _mean(rows: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """[T, width]: the first position's own mean, then that over all other real positions."""
    mean = rows[real].mean(dim=0).expand(rows.shape[1], -1).clone()
    mean[0] = rows[:, 0].mean(dim=0)
    return mean


def _act(nodes: Sequence[Node], values: torch.Tensor, heads: int, positions: torch.Tensor | None) -> Act:
    def act(states: torch.Tensor) -> torch.Tensor:
        import torch

        changed = states.clone()
        wanted = values.to(states.dtype).expand(states.shape)
        for node in nodes:
            span = node.span(states.shape[-1], heads)
            given = wanted[..., span]
            if positions is not None:
                given = torch.where(positions[..., None], given, changed[..., span])
            changed[..., span] = given
        return changed

    return act
