"""Small circuits and steps of rows, as live tests want them."""

from __future__ import annotations

import numpy as np

from sidecar.circuits.activity import SINKS, Activity, Reader, Rows
from sidecar.circuits.circuit import Bank, Circuit, Node
from sidecar.circuits.tick import Shape, TickKey, TickRow

TICK_S = 60


def circuit(name: str = "induction", first: int = 0, nodes: int = 3, tokens: int = 4, **others) -> Circuit:
    """Reads the columns from ``first`` on; engaged where their sum is above 0."""
    read = tuple(Node.direction(f"{name}.{at}", first + at) for at in range(nodes))
    facts = {"model_hash": "m" * 64, "spec_hash": "s" * 64, "bias": 0.0, "theta": 0.0, "low": -8.0, "high": 8.0}
    return Circuit(name, nodes=read, weights=(1.0,) * nodes, tokens=tokens, **(facts | others))


def two(slices: tuple[str, ...] = ("chat", "code")) -> Bank:
    """One of 3 nodes, one of 2, in three slices."""
    return Bank((circuit("induction"), circuit("copying", first=3, nodes=2, tokens=2)), slices)


def step(rng: np.random.Generator, count: int, slices: int = 3, columns: int = 5, sessions: int = 6) -> Rows:
    return Rows(
        rng.normal(size=(count, columns)).astype(np.float32),
        rng.integers(0, 40, count).astype(np.uint32),
        rng.integers(0, slices, count),
        rng.integers(0, sessions, count),
        tuple(f"session {at}" for at in range(sessions)),
    )


def of_sessions(engaged: list[tuple[str, bool]], columns: int = 5) -> Rows:
    """A row each, engaged or not in every circuit."""
    names = tuple(dict.fromkeys(name for name, _ in engaged))
    readings = np.array([[1.0 if on else -1.0] * columns for _, on in engaged], np.float32)
    count = len(engaged)
    at = np.array([names.index(name) for name, _ in engaged], np.intp)
    return Rows(readings, np.full(count, SINKS, np.uint32), np.zeros(count, np.intp), at, names)


def read(bank: Bank, rows: Rows) -> Activity:
    return Reader(bank).read(rows)


def row(evidence: list[int], tick: int = 0, source: str = "a", slice_: str = "all", **key) -> TickRow:
    """A sketch of two nodes in which these sessions bet."""
    shape = Shape(2, len(evidence) - 1)
    counts = np.arange(shape.width)
    counts[-len(evidence) :] = evidence
    facts = {"model_hash": "m" * 64, "spec_hash": "s" * 64, "circuit": "induction", "tick_s": TICK_S}
    return TickRow(TickKey(slice=slice_, tick=tick, **(facts | key)), (source,), shape, counts.astype(np.int64))
