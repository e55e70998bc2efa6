"""32 circuits to be timed and weighed, of eight directions each or of the shape that is shipped, and traffic for them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.streams import MEAN
from probes.circuits.artifact import load_circuit
from probes.circuits.manifest import Severity
from probes.circuits.shipping import SHIPPED
from probes.circuits.watching import live, own_layout
from probes.manifest import TokenSpan
from sidecar.circuits.activity import SINKS, Reader, Rows
from sidecar.circuits.circuit import OTHER, WHOLE, Bank, Circuit, Floats, Node
from sidecar.circuits.reference import WEEK, Reference
from sidecar.circuits.sessions import Share
from sidecar.circuits.watch import Watched
from sidecar.config import Circuits as Config
from sidecar.live import tickwire
from sidecar.live.monitor import Monitor
from sidecar.live.ticks import ClosedTicks
from sidecar.reading.circuit_readings import CircuitReadings
from sidecar.reading.circuits import PlannedCircuit
from sidecar.reading.plan import Plan
from sidecar.reading.read import Readings
from sidecar.types import (
    BatchId,
    EngineId,
    Evidence,
    FloatArray,
    ModelIdentity,
    Phase,
    RequestId,
    Segments,
    StepBatch,
)

CIRCUITS, NODES, BATCH, TOKENS = 32, 8, 64, 4
COPIED = "grounding"  # of the shipped ones that which watches most: 8 heads in 1 or 8 columns each, T^2 and SPE in 16
_TYPICAL = 512  # rows of which theta is the middle

Circuits = tuple[Circuit, ...]


def directions(nodes: int = NODES) -> Circuits:
    """Each of so many directions, with columns of its own."""
    return tuple(_of_directions(number, nodes) for number in range(CIRCUITS))


def _of_directions(number: int, nodes: int) -> Circuit:
    read = tuple(Node.direction(f"{number}.{at}", nodes * number + at) for at in range(nodes))
    return Circuit(f"c{number}", "m" * 64, "s" * 64, read, (1.0,) * nodes, 0.0, 3.0, -12.0, 12.0)


def shipped() -> Circuits:
    """Copies of `COPIED`, with columns of their own. theta is moved: every other token is engaged, so bets are of each kind."""
    about = load_circuit(SHIPPED / COPIED, root=SHIPPED).manifest
    one = live(about, own_layout(about))
    bank = Bank((one,))
    at = np.zeros(_TYPICAL, np.intp)
    rows = Rows(readings(bank, _TYPICAL, np.random.default_rng(0)), np.full(_TYPICAL, SINKS, np.uint32), at, at, ("",))
    one = replace(one, theta=float(np.median(Reader(bank).read(rows).scores)))
    return tuple(_copy(one, number, number * width(bank)) for number in range(CIRCUITS))


def _copy(one: Circuit, number: int, by: int) -> Circuit:
    nodes = tuple(replace(node, columns=tuple(column + by for column in node.columns)) for node in one.nodes)
    return replace(one, name=f"{one.name}-{number}", nodes=nodes)


def routes(slices: int) -> tuple[str, ...]:
    """Those that are told apart so that there are so many slices."""
    return tuple(f"route-{at}" for at in range(slices - 1))


def width(bank: Bank) -> int:
    """How many columns it reads."""
    return 1 + max(column for node in bank.nodes for column in node.columns)


def readings(bank: Bank, rows: int, rng: np.random.Generator) -> FloatArray:
    """float32 [rows, columns], each node within a few standard deviations: activities that are clipped would take longer."""
    made = rng.normal(size=(rows, width(bank)))
    for node in bank.nodes:
        if min(node.square) < 0:  # SPE, behind the columns of its T^2
            made[:, node.columns[-1]] = _norms(node, made, rng)
        elif node.log:
            square, middle = np.array(node.square), np.array(node.centre)
            spread = np.exp(node.mu / 2) / np.sqrt(square * len(square))
            made[:, node.columns] = middle + spread * rng.normal(size=(rows, len(square)))
    return made.astype(np.float32)


def _norms(node: Node, made: Floats, rng: np.random.Generator) -> Floats:
    """The squared norms with which what lies outside of the basis is a third of the limit, more or less."""
    outside = np.exp(node.active - 1 + 0.3 * rng.normal(size=len(made)))
    norm = node.columns[-1]
    made[:, norm] = 0.0
    terms = made[:, node.columns]
    there = (terms * node.linear + node.square * (terms - node.centre) ** 2).sum(axis=1) + node.constant
    return np.asarray(outside - there)


def reference(hours: int = WEEK) -> Reference:
    """Of sessions of which some are engaged, in every hour."""
    return Reference(np.full(hours, MEAN), np.full(hours, 0.01), 0.05, np.full(hours, 20.0))


def watched(circuits: Sequence[Circuit], slices: int) -> tuple[Watched, ...]:
    """Each in every slice, against a week of its own."""
    names = (*routes(slices), OTHER) if slices > 1 else (WHOLE,)
    return tuple(
        Watched(one.name, name, one.model_hash, one.spec_hash, one.tokens, reference(), len(names))
        for one in circuits
        for name in names
    )


def plan(circuits: Circuits, slices: int) -> Plan:
    """Of these circuits and nothing else. Where their columns come from is not told: they are given."""
    model = ModelIdentity("bench", "llama", layers=30, width=576, weights_digest=circuits[0].model_hash)
    planned = tuple(
        PlannedCircuit(
            one, "1.0.0", "d" * 64, Severity.TICKET, TokenSpan.ALL, Evidence.USED, "", (), _unusual(one.nodes)
        )
        for one in circuits
    )
    return Plan(
        1,
        model,
        {},
        (),
        (),
        np.zeros(0, np.intp),
        (),
        circuits=planned,
        circuit_places=width(Bank(circuits)),
        watched=watched(circuits, slices),
        baselines={one.name: "b" * 64 for one in circuits},
    )


def _unusual(nodes: Sequence[Node]) -> tuple[int, ...]:
    return tuple(at for at, node in enumerate(nodes) if node.name.endswith((".t2", ".spe")))


class Monitored:
    """What the hot worker has of circuits, and decode steps of a token each of 64 sessions. values: what is read of 20 steps."""

    def __init__(self, plan: Plan, slices: int, sessions: int) -> None:
        self._plan, self._slices = plan, slices
        self.monitor = Monitor(plan, Config(slices=routes(slices), sessions=sessions), Share(), "bench", ClosedTicks())
        self.values = readings(self.monitor.bank, 20 * BATCH, np.random.default_rng(0)).reshape(20, BATCH, -1)
        self._numbers = itertools.count()
        self.monitor.look(0)

    def traffic(self, count: int, life: int) -> None:
        """Count so many steps in."""
        for read, batch in self.steps(count, life):
            self.monitor.account(read, batch)

    def steps(self, count: int, life: int) -> list[tuple[Readings, StepBatch]]:
        """life: steps after which other sessions come."""
        return [self._step(next(self._numbers), life) for _ in range(count)]

    def _step(self, number: int, life: int) -> tuple[Readings, StepBatch]:
        begun = number // life
        names = [f"{begun:08x}{at:056x}" for at in range(BATCH)]  # as long as a hash
        segments = Segments(
            tuple(RequestId(f"req-{begun}-{at}") for at in range(BATCH)),
            np.arange(BATCH),
            np.ones(BATCH, np.intp),
            np.full(BATCH, SINKS + number % life, np.uint32),
            np.full(BATCH, Phase.DECODE, np.int8),
            np.zeros(BATCH, np.intp),
            traceparents=tuple(f"00-{begun:024x}{at:08x}-{at + 1:016x}-01" for at in range(BATCH)),
            session_id_hashes=tuple(names),
            routes=tuple(f"route-{at % self._slices}" for at in range(BATCH)),
        )
        values = self.values[number % len(self.values)]
        none: Any = np.zeros((BATCH, 0), np.float32)
        read = Readings(
            self._plan,
            1,
            none,
            none.astype(np.bool_),
            np.zeros(0, np.int64),
            (),
            0,
            np.zeros(0, np.bool_),
            CircuitReadings(values, None),
        )
        return read, StepBatch(BatchId(f"batch-{number}"), EngineId("engine"), 0, 1, number, segments, ())

    def give(self, what: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """The order with which the control process comes for closed ticks; there is no other."""
        if what != "ticks":
            raise ValueError(what)
        return {"bytes": self.hand_over(descriptors[0], fields["after"])}

    def hand_over(self, memory: int, after: int) -> int:
        """What `sidecar.worker.loop` does with that order: ticks, and what the detectors know, into a descriptor's memory."""
        ticks = self.monitor.ticks.since(after)
        known = self.monitor.remember() if ticks else None
        return tickwire.write(memory, ticks, (), 1, b"" if known is None else known.to_bytes())
