"""How a circuit is read: looks and their score, fitted on every other token at which it is at work, and on traffic without it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from probes.circuits.artifact import Circuit
from probes.circuits.choosing import looks
from probes.circuits.nodes import Node
from probes.circuits.readouts import Look, raw, score
from probes.circuits.usual import Usual, usual
from probes.circuits.validation.bench import Bench
from probes.circuits.validation.drafting import Made, draft
from probes.circuits.validation.traffic import Idle, idle
from probes.circuits.watching import read
from probes.circuits.weighing import Moved
from sidecar.types import FloatArray, TapPoint

Array = npt.NDArray[np.float64]
States: TypeAlias = Mapping[TapPoint, FloatArray]
# Gets rows on engaged tokens and on traffic, every other of the one and texts of the other; returns how the circuit is read.
Looker: TypeAlias = Callable[[States, States], Sequence[Look]]


@dataclass(frozen=True, slots=True)
class Drafted:
    """The circuit with readouts fitted and nothing shown yet, and its scores on traffic without it, [T]."""

    circuit: Circuit
    idle_scores: Array


def drafted(bench: Bench, look: Looker | None, also: Sequence[TapPoint]) -> Drafted:
    """look: None for the nodes that act, each read as `looks` finds best; else from rows at the nodes and at ``also``."""
    bench.settings.told("reading engaged tokens and traffic")
    claim, heads, usual_at = bench.claim, bench.decoder.heads, _usual_at(bench)
    points = sorted({*(node.where for node in claim.chosen.nodes), *also, *usual_at})
    engaged = bench.rows(points)
    # Beside traffic the pairs' own words where it is not at work: else a readout of what they are about would do as well.
    texts = [*claim.traffic, *(pair.clean for pair in claim.pairs)]
    quiet = idle(bench.decoder, texts, bench.acting, points)
    make = look or (lambda own, other: looks(bench.acting, own, other, heads))
    chosen = tuple(make({point: rows[::2] for point, rows in engaged.items()}, quiet.half(0)))
    own, other = (raw(chosen, states, heads) for states in (engaged, quiet.rows))
    made = Made(
        chosen,
        score(own, other, quiet.texts, chosen, _moved(bench, chosen, quiet.half(0))),
        next((_usual(where, quiet, chosen, claim.basis) for where in usual_at), None),
        (len(bench.engaged), len(quiet.texts)),
        {point: rows.shape[1] for point, rows in quiet.rows.items()},
    )
    circuit = draft(bench.lab, claim, made, heads)
    return Drafted(circuit, read(circuit, quiet.rows).scores[0])


def _moved(bench: Bench, chosen: Sequence[Look], quiet: States) -> Moved:
    """What ablations do to the readings on pairs of the first half. quiet: rows on traffic."""
    if len(chosen) == 1:  # there is nothing to weigh it against
        return Moved(np.ones(1), np.zeros((1, 1)))
    outside, heads = bench.outside(), bench.decoder.heads
    bench.settings.told(f"{len(chosen)} readings, with each of {len(outside)} other nodes ablated")
    ablated, points = bench.half(0), sorted({look.node.where for look in chosen})

    def means(nodes: Collection[Node]) -> Array:
        found: Array = raw(chosen, ablated.rows(nodes, points)[1], heads).mean(axis=1)
        return found

    before, on_traffic = means(()), raw(chosen, quiet, heads).mean(axis=1)
    own = before - np.maximum(means(bench.acting), np.minimum(on_traffic, before))
    return Moved(own, np.stack([means({node}) - before for node in outside]))


def _usual_at(bench: Bench) -> list[TapPoint]:
    """The residual stream at the circuit's last block, if a basis is wanted."""
    last = max(node.where.layer for node in bench.claim.chosen.nodes)
    return [TapPoint(last)] if bench.claim.basis else []


def _usual(where: TapPoint, quiet: Idle, chosen: Sequence[Look], rank: int) -> Usual:
    before = sum(look.columns.shape[1] for look in chosen if look.node.where == where)
    return usual(where, *quiet.everything(where), rank, before)
