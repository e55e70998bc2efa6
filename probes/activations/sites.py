"""Where in a block each site's rows are taken: by the names that decoders give to their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.errors import LabError
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    from torch import nn

# What people call the sites; the second name of the heads is that of papers.
SITES: Mapping[str, Site] = {**{site.value: site for site in Site}, "attn_out": Site.ATTN_HEADS}
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OUT = ("o_proj", "c_proj", "out_proj", "dense", "wo")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")


@dataclass(frozen=True, slots=True)
class Socket:
    """A module whose output, or for the heads whose input, is a tap point's states; words say which, for people."""

    point: TapPoint
    module: nn.Module
    reads_input: bool
    words: str


def find_sockets(model: Any, points: Sequence[TapPoint]) -> list[Socket]:
    """Raises LabError naming the tap point if the model has no such block, or no part that is known by a usual name."""
    from sidecar.tap.transformers.blocks import find_blocks

    try:
        blocks = find_blocks(model)
    except ValueError as error:
        raise LabError(str(error)) from None
    for point in points:
        if point.layer >= len(blocks):
            raise LabError(f"{point.name}: the model's blocks are 0 to {len(blocks) - 1}")
    return [_socket(blocks[point.layer], point) for point in points]


def _socket(block: nn.Module, point: TapPoint) -> Socket:
    where = f"decoder block {point.layer}"
    if point.site is Site.RESID_POST:
        return Socket(point, block, False, f"output of {where}: the residual stream before any norm")
    if point.site is Site.MLP_OUT:
        name, module = _child(block, _MLP, point)
        return Socket(point, module, False, f"output of {name} of {where}, before it is added to the residual stream")
    name, attention = _child(block, _ATTENTION, point)
    out, module = _child(attention, _OUT, point)
    return Socket(point, module, True, f"input of {name}.{out} of {where}: the outputs of its heads, side by side")


def _child(parent: nn.Module, names: Sequence[str], point: TapPoint) -> tuple[str, nn.Module]:
    children = dict(parent.named_children())
    for name in names:
        if name in children:
            return name, children[name]
    raise LabError(
        f"{point.name}: {type(parent).__name__} has none of {', '.join(names)} (it has {', '.join(children) or 'no parts'})"
    )
