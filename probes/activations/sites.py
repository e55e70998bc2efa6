"""Where in a block each site's rows are taken: by the names that decoders give to their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.errors import LabError
from sidecar.tap.sites import NoPartError, find_socket
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    from torch import nn

# What people call the sites; the second name of the heads is that of papers.
SITES: Mapping[str, Site] = {**{site.value: site for site in Site}, "attn_out": Site.ATTN_HEADS}


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
    try:
        module, reads_input, path = find_socket(block, point.site)
    except NoPartError as missing:
        raise LabError(f"{point.name}: {missing}") from None
    where = f"decoder block {point.layer}"
    words = {
        Site.RESID_POST: f"output of {where}: the residual stream before any norm",
        Site.MLP_OUT: f"output of {path} of {where}, before it is added to the residual stream",
        Site.ATTN_HEADS: f"input of {path} of {where}: the outputs of its heads, side by side",
    }
    return Socket(point, module, reads_input, words[point.site])
