"""Which nodes a circuit gets from a discovery, and how they are read."""

from __future__ import annotations

import numpy as np
import pytest

from probes.circuits.choosing import acting, choose, looks, ranked
from probes.circuits.draft import DraftCircuit
from probes.circuits.manifest import ReadoutKind
from probes.circuits.nodes import Node
from probes.errors import LabError
from tests.circuits.small import manifest_fields

HEADS = tuple(Node.parse(f"blocks.1.attn_heads.{head}") for head in range(4))
MLP = Node.parse("blocks.0.mlp_out")


def draft(**effects: list[float] | None) -> DraftCircuit:
    """Of a behaviour worth 10. Names: h0 to h3, and mlp; None: not patched."""
    named = {f"h{number}": head for number, head in enumerate(HEADS)} | {"mlp": MLP}
    nodes = [
        {
            "node": named[name].name,
            "effect": None if pairs is None else float(np.mean(pairs)),
            "by_pair": pairs,
            "attribution": 0.5,
            "chosen": None if pairs is None else "all",
        }
        for name, pairs in effects.items()
    ]
    return DraftCircuit.model_validate(
        {
            "name": "going_on",
            "model": manifest_fields()["model"],
            "pairs": 4,
            "pairs_digest": "a" * 64,
            "metric": "m",
            "clean": 8.0,
            "corrupt": -2.0,
            "method": "exact",
            "steps": 0,
            "seed": 0,
            "important": 0.05,
            "nodes": nodes,
            "pearson": None,
            "missed": None,
            "reuse": True,
            "trace": None,
            "versions": {},
        }
    )


def test_a_node_belongs_if_it_surely_carries_its_share_and_not_because_of_one_pair():
    found = choose(draft(h0=[3.0, 3, 4, 3], h1=[0.0, 0, 0, 30], h2=[1.2, 1.2, 1.2, 1.3], h3=[-5.0] * 4), 0.1)
    assert found.nodes == (HEADS[0], HEADS[2])
    assert found.effects == pytest.approx((0.325, 0.1225))


def test_no_node_that_surely_carries_anything_is_no_circuit():
    with pytest.raises(LabError, match="no node of going_on surely takes 10%"):
        choose(draft(h0=[0.0, 0, 0, 30], h1=[-9.0] * 4), 0.1)


def test_nodes_that_help_the_most_come_first_and_those_that_were_not_patched_last():
    told = draft(h0=[-5.0] * 4, h1=None, h2=[4.0] * 4, mlp=[9.0] * 4)
    assert ranked(told) == (MLP, HEADS[2], HEADS[0], HEADS[1])


def test_heads_are_watched_if_there_are_any():
    assert acting([MLP, HEADS[1]]) == (HEADS[1],)
    assert acting([MLP]) == (MLP,)


def states(engaged: bool, count: int, loud: int, seed: int) -> dict:
    """Rows of four heads of 8 coordinates; head ``loud`` writes more into two of them where it is engaged."""
    rows = np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float32)
    if engaged:
        rows[:, 8 * loud : 8 * loud + 2] *= 40
    return {HEADS[0].where: rows}


def test_only_heads_whose_reading_tells_are_watched_each_by_its_energy():
    (look,) = looks(HEADS, states(True, 24, 2, 1), states(False, 300, 2, 2), heads=4)
    assert (look.node, look.kind) == (HEADS[2], ReadoutKind.ENERGY)
    assert not np.delete(look.columns, range(16, 24), axis=0).any()


def test_where_no_reading_tells_the_best_one_is_watched_and_the_gates_say_the_rest():
    (look,) = looks(HEADS, states(False, 24, 0, 1), states(False, 300, 0, 2), heads=4)
    assert look.node in HEADS
