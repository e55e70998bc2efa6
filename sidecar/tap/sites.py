"""Where in a block the states of a site pass, by the names that models give to their parts: for every tap, and for the lab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from sidecar.types import Site

if TYPE_CHECKING:
    from torch import nn

# A dotted name is a part of a part. The decoder's own attention, never the one that looks at the encoder.
_ATTENTION = (
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "layer.0.SelfAttention",
)
_OUT = ("o_proj", "c_proj", "out_proj", "dense", "output.dense", "to_out.0", "wo", "o")
_MLP = (
    "mlp",
    "feed_forward",
    "block_sparse_moe",
    "ffn",
    "ff",
    "fc2",
    "layer.2.DenseReluDense",
    "layer.1.DenseReluDense",
    "output.dense",
)


class NoPartError(LookupError):
    """The block has no part that is known by a usual name; the text says what was looked for, and what is there."""


class Socket(NamedTuple):
    """A module whose output, or for the heads whose input, is a site's states. ``path``: its name in the block, "" for itself."""

    module: nn.Module
    reads_input: bool
    path: str


def find_socket(block: nn.Module, site: Site) -> Socket:
    """Where the states of one site pass in one block. Raises NoPartError."""
    if site is Site.RESID_POST:
        return Socket(block, False, "")
    if site is Site.MLP_OUT:
        name, module = _part(block, _MLP)
        return Socket(module, False, name)
    name, attention = _part(block, _ATTENTION)
    out, module = _part(attention, _OUT)
    return Socket(module, True, f"{name}.{out}")


def _part(parent: nn.Module, names: tuple[str, ...]) -> tuple[str, nn.Module]:
    found = next(_parts(parent, names), None)
    if found is None:
        there = ", ".join(name for name, _ in parent.named_children()) or "no parts"
        raise NoPartError(f"{type(parent).__name__} has none of {', '.join(names)} (it has {there})")
    return found


def _parts(parent: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for name in names:
        try:
            yield name, parent.get_submodule(name)
        except AttributeError:
            continue
