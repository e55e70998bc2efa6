"""A circuit as it is watched on live traffic: its columns among those of a plan, and its nodes as the sketch reads them.

The lab reads circuits with the very arithmetic of the service (`sidecar.circuits.activity.Reader`): what is fitted and validated
is what will be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.circuits.artifact import Circuit
from probes.circuits.manifest import Basis, CircuitManifest, CircuitNode, ReadoutKind
from sidecar.circuits.activity import SINKS, Activity, Reader, Rows
from sidecar.circuits.circuit import Bank
from sidecar.circuits.circuit import Circuit as LiveCircuit
from sidecar.circuits.circuit import Node as LiveNode
from sidecar.types import FloatArray, TapPoint

States = Mapping[TapPoint, npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a circuit's columns are among a plan's. starts: of each place's columns. norms: of squared norms.

    A norm is that of a head, under the node's name, or that of a whole row, under the tap point's.
    """

    starts: Mapping[TapPoint, int]
    norms: Mapping[str, int]


def own_layout(manifest: CircuitManifest) -> Layout:
    """A plan of this circuit alone: its places one after another, then the norms that it needs."""
    starts, at = {}, 0
    for place in manifest.places:
        starts[place.where] = at
        at += place.columns
    return Layout(starts, {name: at + number for number, name in enumerate(norms_wanted(manifest))})


def norms_wanted(manifest: CircuitManifest) -> tuple[str, ...]:
    """Names of the norms that must be given beside the columns."""
    heads = [one.node for one in manifest.watched if one.readout is not None and not one.readout.columns]
    return (*heads, *([manifest.basis.tap_point] if manifest.basis is not None else []))


def live(manifest: CircuitManifest, layout: Layout) -> LiveCircuit:
    """What the sketch is told of it. The basis, where there is one, is two more nodes without weight: T^2 and SPE."""
    nodes = [_node(one, layout) for one in manifest.watched]
    weights = [one.readout.weight for one in manifest.watched if one.readout is not None]
    if manifest.basis is not None:
        nodes += _usual(manifest.basis, layout)
        weights += [0.0, 0.0]
    score = manifest.score
    return LiveCircuit(
        manifest.name,
        manifest.model.weights_digest,
        manifest.spec_hash,
        tuple(nodes),
        tuple(weights),
        score.bias,
        score.theta,
        score.low,
        score.high,
        manifest.k,
    )


def readings(circuit: Circuit, states: States) -> FloatArray:
    """What a tap gives of these states under `own_layout`: float32 [T, columns]. states: [T, width] of each place."""
    about = circuit.manifest
    given = [states[where].astype(np.float32) @ circuit.columns[where] for where in _ordered(circuit)]
    given += [_norm(about, name, states)[:, None] for name in norms_wanted(about)]
    return np.concatenate(given, axis=1).astype(np.float32)


def read(circuit: Circuit, states: States) -> Activity:
    """Activities [N, T], scores [1, T] and who is engaged, of tokens none of which is among the first few of its text."""
    bank = Bank((live(circuit.manifest, own_layout(circuit.manifest)),))
    return Reader(bank).read(of_nobody(readings(circuit, states)))


def of_nobody(told: FloatArray) -> Rows:
    """Readings [T, columns] as rows of one slice and one session, behind the attention sinks."""
    at = np.zeros(len(told), np.intp)
    return Rows(told, np.full(len(told), SINKS, np.uint32), at, at, ("",))


def _ordered(circuit: Circuit) -> list[TapPoint]:
    return [place.where for place in circuit.manifest.places if place.columns]


def _norm(about: CircuitManifest, name: str, states: States) -> FloatArray:
    named = {one.node: one.what for one in about.watched}
    if name not in named:
        own = states[TapPoint.parse(name)].astype(np.float32)
    else:
        place = about.place(named[name].where)
        own = states[place.where][:, named[name].span(place.width, place.heads or 1)].astype(np.float32)
    squares: FloatArray = np.einsum("td,td->t", own, own)
    return squares


def _node(one: CircuitNode, layout: Layout) -> LiveNode:
    told = one.readout
    if told is None:
        raise ValueError(f"{one.node} is not watched")
    if not told.columns:
        return LiveNode.norm(one.node, layout.norms[one.node], mu=told.mu, sigma=told.sigma, active=told.active)
    start = layout.starts[one.what.where] + told.first
    if told.kind is ReadoutKind.ENERGY:
        columns = range(start, start + told.columns)
        return LiveNode.energy(one.node, columns, mu=told.mu, sigma=told.sigma, active=told.active)
    return LiveNode.direction(one.node, start, mu=told.mu, sigma=told.sigma, active=told.active)


def _usual(basis: Basis, layout: Layout) -> list[LiveNode]:
    where = TapPoint.parse(basis.tap_point)
    start = layout.starts[where] + basis.first
    columns = range(start, start + basis.rank)
    centre, variances = np.array(basis.centre), np.array(basis.variances)
    inside = LiveNode.inside(f"{where.name}.t2", columns, centre, variances, limit=basis.t2_limit)
    outside = LiveNode.outside(
        f"{where.name}.spe",
        columns,
        centre,
        start + basis.rank,
        layout.norms[where.name],
        basis.length,
        limit=basis.spe_limit,
    )
    return [inside, outside]
