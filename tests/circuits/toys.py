"""The toy of `probes.circuits.toy` and its known circuit; ``python -m probes.circuits.toy tests/circuits/toy`` makes it."""

from __future__ import annotations

from pathlib import Path

from probes.activations.model import LabModel, open_model
from probes.circuits.nodes import Node

FOLDER = Path(__file__).parent / "toy"
PREVIOUS_TOKEN = Node.parse("blocks.0.attn_heads.3")
INDUCTION = Node.parse("blocks.1.attn_heads.3")


def toy() -> LabModel:
    return open_model(FOLDER)
