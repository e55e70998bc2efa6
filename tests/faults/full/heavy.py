"""A sidecar whose work is the bottleneck: directions enough that the product costs more than the tap's sending."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from probes.artifact import save_artifact
from sidecar.types import TapPoint
from tests.builders import MODEL, manifest_fields
from tests.faults.process import Process

WIDTH, PROBES = 512, 64
HEAVY = replace(MODEL, width=WIDTH)
TAPS = (TapPoint(1), TapPoint(2))
RING_SLOTS, WORKERS = 2, 1


def heavy_artifacts(home: Path) -> Path:
    """Random probes at two tap points; their readings lie below the threshold and above it."""
    root, rng = home / "artifacts", np.random.default_rng(0)
    contract = {"hook_point": "resid", "width": WIDTH, "token_span": "all", "skip_positions": 0}
    for tap in TAPS:
        for number in range(PROBES):
            name = f"probe_{tap.layer}_{number}"
            direction = rng.normal(scale=WIDTH**-0.5, size=(WIDTH, 1)).astype(np.float32)
            fields = manifest_fields(name, tap=tap, feature_contract=contract)
            save_artifact(root / name, fields, direction, np.zeros(1, dtype=np.float32))
    return root


def way(home: Path, transport: str) -> str:
    """The address by which a tap comes to use this transport: the socket, or another name of it, beside which no rings are had."""
    socket = home / "run" / "sidecar.sock"
    if transport == "ring":
        return f"unix:{socket}"
    link = home / "plain.sock"
    if not link.is_symlink():
        link.symlink_to(socket)
    return f"unix:{link}"


@contextmanager
def heavy_sidecar(home: Path, *flags: str) -> Iterator[Process]:
    """Everything of the heavy plan, of every request."""
    wanted = ("--set", "sampling.request_fraction=1.0", *flags)
    with Process(home, heavy_artifacts(home), *wanted) as process:
        process.event("started")
        yield process
