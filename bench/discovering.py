"""What it costs to patch every node of a model of 135M parameters, one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.row import Row

_GOAL_S = 200.0
_PAIRS, _SHORT_PAIRS = 16, 2


def measure(*, short: bool = False) -> Iterator[Row]:
    """CPU seconds of one core, untouched runs included; loading the model is not."""
    from probes.activations.model import open_model
    from probes.circuits.behaviours import made_pairs
    from probes.circuits.nodes import by_point
    from probes.circuits.patching import Patching
    from probes.circuits.running import Decoder
    from probes.circuits.universe import nodes_of
    from probes.smollm2 import prepared_model

    lab = open_model(prepared_model(progress=False))
    pairs = made_pairs("induction", lab, _SHORT_PAIRS if short else _PAIRS)
    nodes = nodes_of(lab.model)
    began_s = time.process_time()
    patching = Patching(Decoder(lab.model), pairs, list(by_point(nodes)))
    for those in by_point(nodes).values():
        patching.exact(those)
    spent_s = time.process_time() - began_s
    tokens = sum(len(pair.clean) for pair in pairs)
    note = f"exact patching, {len(pairs)} induction pairs of {tokens} tokens together; {lab.identity.name}, float32"
    row = Row(f"sweep of all {len(nodes)} nodes, CPU-s", spent_s, note=note)
    yield row if short else row.at_most(_GOAL_S)
