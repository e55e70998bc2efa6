"""A circuit's nodes: an attention head, an MLP, or the residual stream after a block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from probes.errors import LabError
from sidecar.types import Site, Stack, TapPoint

_HEAD = re.compile(r"(.+\.attn_heads)\.(0|[1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True, order=True)
class Node:
    """Sorts in the order in which a decoder computes. head: of a tap point at the heads the one that is meant, else None.

    >>> Node.parse("blocks.5.attn_heads.3")
    Node(where=TapPoint(layer=5, site=<Site.ATTN_HEADS: 'attn_heads'>, stack=<Stack.DECODER: 'decoder'>), head=3)
    >>> Node.parse("blocks.5.mlp_out").name
    'blocks.5.mlp_out'
    """

    where: TapPoint
    head: int | None = None

    def __post_init__(self) -> None:
        if (self.head is not None) != (self.where.site is Site.ATTN_HEADS):
            raise ValueError(f"{self.where.name}: a node at the heads names one of them, and no other node does")
        if self.where.stack is not Stack.DECODER:
            raise ValueError(f"{self.where.name}: circuits are those of a decoder")

    @property
    def name(self) -> str:
        return self.where.name if self.head is None else f"{self.where.name}.{self.head}"

    @classmethod
    def parse(cls, name: str) -> Node:
        """Raises ValueError if it is not the name of a node."""
        match = _HEAD.fullmatch(name)
        return cls(TapPoint.parse(name)) if match is None else cls(TapPoint.parse(match[1]), int(match[2]))

    def span(self, width: int, heads: int) -> slice:
        """Which columns of the tap point's rows are the node's; width: of a row; heads: how many lie side by side in it.

        >>> Node.parse("blocks.0.attn_heads.2").span(64, 4)
        slice(32, 48, None)
        """
        if self.head is None:
            return slice(0, width)
        if self.head >= heads or width % heads:
            raise LabError(f"{self.name}: its rows are {width} wide, of {heads} heads")
        size = width // heads
        return slice(self.head * size, (self.head + 1) * size)


def by_point(nodes: Iterable[Node]) -> Mapping[TapPoint, tuple[Node, ...]]:
    """The nodes of each tap point, in order."""
    found: dict[TapPoint, list[Node]] = {}
    for node in sorted(nodes):
        found.setdefault(node.where, []).append(node)
    return {where: tuple(those) for where, those in found.items()}
