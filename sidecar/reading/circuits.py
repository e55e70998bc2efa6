"""Circuits in a plan: their columns at the tap points, and where these go in a step's readings of circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.circuits.artifact import Circuit as Artifact
from probes.circuits.manifest import Severity
from probes.circuits.watching import Layout, live, norms_wanted
from probes.home import Fit
from probes.manifest import TokenSpan
from sidecar.circuits.circuit import Circuit
from sidecar.types import Evidence, FloatArray, TapPoint


@dataclass(frozen=True, slots=True)
class CircuitColumns:
    """What circuits have at one tap point. Places are columns of `CircuitReadings.values`.

    here: columns of the tap point's matrix that go to ``places`` as they are. lengths: of a head's coordinates, the squared
    length of these columns goes to that place. norm: the place of the whole row's squared norm, if a circuit wants it.
    """

    here: slice
    places: slice
    lengths: tuple[tuple[slice, int], ...] = ()
    norm: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedCircuit:
    """A circuit as it is served. What its nodes read are places of `CircuitReadings.values`; taps: where these come from."""

    circuit: Circuit
    version: str
    digest: str
    severity: Severity
    span: TokenSpan
    evidence: Evidence
    reason: str  # why it may not page; empty if it may
    taps: tuple[TapPoint, ...]
    unusual: tuple[int, ...] = ()  # which of its nodes tell rows unlike those that it was made on: T^2 and SPE

    @property
    def name(self) -> str:
        return self.circuit.name

    @property
    def may_page(self) -> bool:
        """Whether it has earned that anybody is called because of it: validated, at home, and meant to."""
        return not self.reason and self.severity is Severity.PAGE


@dataclass(frozen=True, slots=True)
class Standing:
    """A circuit that fits the model, on its way into a plan."""

    artifact: Artifact
    fit: Fit


@dataclass(frozen=True, slots=True)
class Stacked:
    """The columns of all circuits at one tap point: float32 [width, K], and what is to be told of them."""

    names: tuple[str, ...]
    origins: tuple[tuple[str, int], ...]
    directions: FloatArray
    columns: CircuitColumns  # as if they were the only ones of the matrix


def stack(
    circuits: Sequence[Standing], model_hash: str
) -> tuple[dict[TapPoint, Stacked], tuple[PlannedCircuit, ...], int]:
    """Columns by tap point, the circuits that read them, and how many places there are.

    Those that share a tap point agree about its width. model_hash: of the model that is served, which sketches are marked with.
    """
    made: dict[TapPoint, Stacked] = {}
    told = _Told()
    for where in sorted({place.where for one in circuits for place in one.artifact.manifest.places}):
        here = _At(where, told)
        for one in circuits:
            here.add(one.artifact)
        made[where] = here.end()
    return made, tuple(_planned(one, told, model_hash) for one in circuits), told.places


class _Told:
    """Where the columns of each circuit begin at each tap point, where its norms are, and how many places are taken."""

    def __init__(self) -> None:
        self.starts: dict[tuple[str, TapPoint], int] = {}
        self.norms: dict[tuple[str, str], int] = {}
        self.places = 0


class _At:
    """The columns at one tap point in the making: first those that are read as they are, then the coordinates of heads."""

    def __init__(self, where: TapPoint, told: _Told) -> None:
        self._where, self._told, self._first = where, told, told.places
        self._names: list[str] = []
        self._origins: list[tuple[str, int]] = []
        self._columns: list[FloatArray] = []
        self._heads: list[tuple[Artifact, str, slice]] = []
        self._rows: list[str] = []  # circuits that want the row's norm
        self._width = 0

    def add(self, artifact: Artifact) -> None:
        about = artifact.manifest
        place = next((one for one in about.places if one.where == self._where), None)
        if place is None:
            return
        self._width = place.width
        self._told.starts[about.name, self._where] = self._first + len(self._names)
        if place.columns:
            self._append(artifact, artifact.columns[self._where])
        named = {one.node: one.what for one in about.watched}
        for wanted in norms_wanted(about):
            if wanted == self._where.name:
                self._rows.append(about.name)
            elif wanted in named and named[wanted].where == self._where:
                self._heads.append((artifact, wanted, named[wanted].span(place.width, place.heads or 1)))

    def _append(self, artifact: Artifact, columns: FloatArray) -> None:
        """A column is known by the tap point's place in its artifact and its number there, whatever plan it is in."""
        first = [one.where for one in artifact.manifest.places].index(self._where) << 20
        first += sum(digest == artifact.digest for digest, _ in self._origins)
        self._columns.append(columns)
        self._names += [artifact.manifest.name] * columns.shape[1]
        self._origins += [(artifact.digest, first + number) for number in range(columns.shape[1])]

    def end(self) -> Stacked:
        """Norms have their places behind those of the columns."""
        here, told = len(self._names), self._told
        at = self._first + here
        lengths = []
        for artifact, node, span in self._heads:
            unit = np.eye(self._width, dtype=np.float32)[:, span]
            lengths.append((slice(len(self._names), len(self._names) + unit.shape[1]), at))
            self._append(artifact, unit)
            told.norms[artifact.manifest.name, node] = at
            at += 1
        told.norms |= {(name, self._where.name): at for name in self._rows}
        norm = at if self._rows else None
        told.places = at + bool(self._rows)
        columns = CircuitColumns(slice(0, here), slice(self._first, self._first + here), tuple(lengths), norm)
        whole = np.concatenate([np.zeros((self._width, 0), np.float32), *self._columns], axis=1)
        return Stacked(tuple(self._names), tuple(self._origins), whole, columns)


def _planned(one: Standing, told: _Told, model_hash: str) -> PlannedCircuit:
    about = one.artifact.manifest
    layout = Layout(
        {place.where: told.starts[about.name, place.where] for place in about.places},
        {wanted: told.norms[about.name, wanted] for wanted in norms_wanted(about)},
    )
    circuit = replace(live(about, layout), model_hash=model_hash)
    return PlannedCircuit(
        circuit,
        about.version,
        one.artifact.digest,
        about.severity,
        about.token_span,
        one.fit.evidence,
        one.fit.reason,
        tuple(place.where for place in about.places),
        tuple(range(len(about.watched), len(circuit.nodes))),
    )


def columns_of(artifact: Artifact) -> list[tuple[str, int]]:
    """How many columns it takes at each of its tap points, the coordinates of heads whose length it wants among them."""
    about = artifact.manifest
    wanted = norms_wanted(about)
    heads = [one.what.where for one in about.watched if one.node in wanted]
    return [
        (place.tap_point, place.columns + heads.count(place.where) * (place.width // (place.heads or 1)))
        for place in about.places
    ]


def behind(columns: CircuitColumns, others: int) -> CircuitColumns:
    """The same columns in a matrix in which so many others come first."""

    def moved(one: slice) -> slice:
        return slice(one.start + others, one.stop + others)

    return CircuitColumns(
        moved(columns.here),
        columns.places,
        tuple((moved(one), place) for one, place in columns.lengths),
        columns.norm,
    )
