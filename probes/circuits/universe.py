"""Which nodes a model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probes.circuits.nodes import Node
from probes.errors import LabError
from sidecar.types import Site, TapPoint

# What a block is made of. The residual stream is not among its parts: whoever replaces it replaces all that lies below.
PARTS = (Site.ATTN_HEADS, Site.MLP_OUT)


def nodes_of(model: Any, sites: Sequence[Site] = PARTS) -> tuple[Node, ...]:
    """All nodes of a transformers decoder at these sites, in order.

    A block without attention (a state space, say) has no heads. Raises LabError if no block has a part that is asked for.
    """
    from sidecar.tap.sites import NoPartError, find_socket
    from sidecar.tap.transformers.blocks import find_blocks

    try:
        blocks = find_blocks(model)
    except ValueError as error:
        raise LabError(str(error)) from None
    found: list[Node] = []
    for site in sites:
        missing: NoPartError | None = None
        before = len(found)
        for layer, block in enumerate(blocks):
            try:
                find_socket(block, site)
            except NoPartError as error:
                missing = error
            else:
                found.extend(_at(TapPoint(layer, site), heads_of(model)))
        if len(found) == before:
            raise LabError(f"no block has a node at {site.value}: {missing}")
    return tuple(sorted(found))


def heads_of(model: Any) -> int:
    """How many heads an attention of the decoder has. Raises LabError if its config does not say."""
    heads = getattr(model.config.get_text_config(decoder=True), "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise LabError(f"{type(model).__name__}: its config does not say how many attention heads it has")
    return heads


def _at(where: TapPoint, heads: int) -> list[Node]:
    return [Node(where, head) for head in range(heads)] if where.site is Site.ATTN_HEADS else [Node(where)]
