"""Nodes have names, an order, and a place in any decoder."""

from __future__ import annotations

import pytest

from probes.circuits.nodes import Node, by_point
from probes.circuits.universe import nodes_of
from probes.errors import LabError
from sidecar.types import Site, Stack, TapPoint
from tests.tap.models import ARCHITECTURES, LAYERS, tiny

NAMES = ["blocks.0.attn_heads.0", "blocks.0.attn_heads.11", "blocks.0.mlp_out", "blocks.2.resid_post"]


@pytest.mark.parametrize("name", NAMES)
def test_a_node_is_found_again_by_its_name(name: str) -> None:
    assert Node.parse(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn_heads",
        "blocks.0.attn_heads.x",
        "blocks.0.attn_heads.01",
        "blocks.0.mlp_out.3",
        "block.0.mlp_out",
        "",
    ],
)
def test_what_is_no_node_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        Node.parse(name)


def test_a_node_of_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder"):
        Node(TapPoint(0, Site.MLP_OUT, Stack.ENCODER))


def test_nodes_sort_as_a_decoder_computes_them() -> None:
    names = [
        "blocks.0.attn_heads.2",
        "blocks.0.attn_heads.10",
        "blocks.0.mlp_out",
        "blocks.0.resid_post",
        "blocks.1.attn_heads.0",
    ]
    assert [node.name for node in sorted(map(Node.parse, reversed(names)))] == names


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_head_and_mlp_of_any_decoder_is_a_node(architecture: str) -> None:
    nodes = nodes_of(tiny(architecture))
    assert len(nodes) == LAYERS * (4 + 1)
    assert list(nodes) == sorted(nodes)
    assert [len(those) for those in by_point(nodes).values()] == [4, 1] * LAYERS


def test_the_residual_stream_is_a_node_where_it_is_asked_for() -> None:
    assert [node.name for node in nodes_of(tiny(), [Site.RESID_POST])] == [
        f"blocks.{at}.resid_post" for at in range(LAYERS)
    ]


def test_a_head_that_a_tap_point_does_not_have_is_refused() -> None:
    with pytest.raises(LabError, match=r"blocks\.0\.attn_heads\.4.*64 wide, of 4 heads"):
        Node.parse("blocks.0.attn_heads.4").span(64, 4)
