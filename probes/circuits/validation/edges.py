"""How nodes of a circuit hang together: what of each one's output comes from each of those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.circuits.findings import EDGES, Edge
from probes.circuits.nodes import Node
from probes.circuits.validation.ablating import Ablated


def edges(resample: Ablated, nodes: Sequence[Node], heads: int) -> tuple[Edge, ...]:
    """Every edge from a node to one of a later block, or from a head to its own block's MLP; the strongest first.

    With d = the target's output on the clean prompt less that on the corrupt one, and g = by how much its output on the clean
    prompt changes when the source is patched, the share is <g, d> / <d, d>, over all pairs. One run for each source.
    """
    points = sorted({node.where for node in nodes})
    _, clean = resample.rows((), points)
    corrupt = resample.given(points)
    found = []
    for source in nodes:
        later = [node for node in nodes if _comes_after(node, source)]
        if not later:
            continue
        _, patched = resample.rows([source], sorted({node.where for node in later}))
        for target in later:
            span = target.span(clean[target.where].shape[1], heads)
            own, other, now = (rows[target.where][:, span].astype(np.float64) for rows in (clean, corrupt, patched))
            whole = float(((own - other) ** 2).sum())
            if whole > 0:
                share = float(((own - now) * (own - other)).sum()) / whole
                found.append(Edge(source=source.name, target=target.name, share=share))
    return tuple(sorted(found, key=lambda one: (-abs(one.share), one.source, one.target))[:EDGES])


def _comes_after(node: Node, source: Node) -> bool:
    """A block's MLP reads what its heads have written, in the decoders that do one after the other."""
    return node.where.layer > source.where.layer or (
        node.where.layer == source.where.layer and source.head is not None and node.head is None
    )
