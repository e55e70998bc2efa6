"""The manifest of a circuit: which nodes, read how, engaged when, on what evidence. Strict: an unknown key is an error."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from probes.circuits.findings import Findings
from probes.circuits.nodes import Node
from probes.manifest.binding import ModelBinding, TokenSpan
from probes.manifest.fields import Finite, Name, Sealed, Share, Strict, Text
from probes.manifest.findings import GateResult
from probes.manifest.manifest import TrainingData
from sidecar.circuits.activity import SINKS
from sidecar.circuits.circuit import BINS
from sidecar.types import Evidence, Site, Stack, TapPoint

SCHEMA = "stethoscope.circuit/1"
ENERGY_COLUMNS = 8
NODES, WATCHED = 64, 16
# The gate without which a circuit is validated and yet may only open a ticket.
FOR_PAGES = "agree"
_AN_EDGE = 1e-6  # of a bin: what is left of a float64 after decimal and back

Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Severity(StrEnum):
    """What an alarm about a circuit may do."""

    PAGE = "page"
    TICKET = "ticket"


class ReadoutKind(StrEnum):
    """How a node's activity is read off its row h."""

    DIRECTION = "direction"  # u.h
    INDEX = "index"  # one coordinate of h
    ENERGY = "energy"  # log ||U'h||^2


class Place(Strict):
    """A tap point that is read: rows of ``width``, on ``columns`` columns. heads: how many lie side by side, at the heads."""

    tap_point: Text
    width: Annotated[int, Field(ge=1, le=1 << 20)]
    columns: Annotated[int, Field(ge=0, le=1024)]
    heads: Annotated[int, Field(ge=1, le=65536)] | None = None

    @field_validator("tap_point")
    @classmethod
    def _parses(cls, value: str) -> str:
        if TapPoint.parse(value).stack is not Stack.DECODER:
            raise ValueError("circuits are those of a decoder")
        return value

    @model_validator(mode="after")
    def _heads_fill_the_row(self) -> Place:
        if (self.heads is not None) != (self.where.site is Site.ATTN_HEADS) or self.width % (self.heads or 1):
            raise ValueError("a tap point at the heads says how many share a row, and no other does")
        return self

    @property
    def where(self) -> TapPoint:
        return TapPoint.parse(self.tap_point)


class Readout(Strict):
    """A node's activity (reading - mu) / sigma, from columns ``first`` up to ``first + columns`` of its tap point.

    columns: of an energy 1 to 8, or 0: that of all of a head's coordinates, its built-in norm. active: the activity above which
    the node counts as active, its 95 % point on traffic that does not use the circuit. weight: in the score.
    """

    kind: ReadoutKind
    first: Annotated[int, Field(ge=0, le=1024)] = 0
    columns: Annotated[int, Field(ge=0, le=ENERGY_COLUMNS)] = 1
    mu: Finite
    sigma: Above0
    active: Finite
    weight: Finite

    @model_validator(mode="after")
    def _as_many_columns_as_its_kind_has(self) -> Readout:
        if self.kind is not ReadoutKind.ENERGY and self.columns != 1:
            raise ValueError("only an energy is read off several columns, or off none")
        return self


class CircuitNode(Strict):
    """A part of the circuit. effect: share of the behaviour that patching it alone takes away; readout: None if it is not watched.

    A node at the residual stream is no part of the circuit: it is a place where the circuit's work is read.
    """

    node: Text
    effect: Finite
    readout: Readout | None = None

    @field_validator("node")
    @classmethod
    def _parses(cls, value: str) -> str:
        return Node.parse(value).name

    @property
    def what(self) -> Node:
        return Node.parse(self.node)


class Score(Strict):
    """S = sum of weight * activity + bias; engaged: S > theta, which ``traffic_share`` of traffic that does not use it is.

    low, high: of the histogram's 64 bins of one width; what lies beyond counts in the first or in the last. theta is an edge
    between two bins, so that the histogram tells the engaged share exactly.
    """

    bias: Finite
    theta: Finite
    low: Finite
    high: Finite
    traffic_share: Share
    traffic_tokens: Annotated[int, Field(ge=1)]
    engaged_share: Share  # of the tokens at which the circuit was at work
    engaged_tokens: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Score:
        if not self.low < self.theta < self.high:
            raise ValueError("want low < theta < high")
        at = (self.theta - self.low) / (self.high - self.low) * BINS
        if abs(at - round(at)) > _AN_EDGE:
            raise ValueError("theta is an edge between two bins")
        return self

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """[65]."""
        return np.linspace(self.low, self.high, BINS + 1)


class Basis(Strict):
    """A frozen principal subspace of traffic at one tap point, to tell rows unlike those that the circuit was made on.

    Columns: ``first`` up to ``first + rank`` are orthonormal directions U, and the one after them is the mean m of all rows.
    centre: U'm; variances: of the rows along U; length: ||m||^2. t2_limit, spe_limit: their 99 % points on held-out traffic.
    """

    tap_point: Text
    first: Annotated[int, Field(ge=0, le=1024)]
    rank: Annotated[int, Field(ge=1, le=64)]
    centre: Annotated[tuple[Finite, ...], Field(max_length=64)]
    variances: Annotated[tuple[Above0, ...], Field(max_length=64)]
    length: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    t2_limit: Above0
    spe_limit: Above0

    @model_validator(mode="after")
    def _as_many_as_its_rank(self) -> Basis:
        if not len(self.centre) == len(self.variances) == self.rank:
            raise ValueError("centre and variances have one number for each direction")
        return self


class CircuitManifest(Sealed):
    """Everything that must travel with a circuit. width: of the model's residual stream; k: tokens sampled of a session."""

    schema_: Annotated[Literal["stethoscope.circuit/1"], Field(alias="schema")]
    name: Name
    version: Annotated[str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")]
    description: Text
    behaviour: Text
    severity: Severity
    model: ModelBinding
    width: Annotated[int, Field(ge=1, le=65536)]
    token_span: TokenSpan
    skip_positions: Annotated[int, Field(ge=SINKS, le=SINKS)] = SINKS
    places: Annotated[tuple[Place, ...], Field(max_length=128)]
    nodes: Annotated[tuple[CircuitNode, ...], Field(min_length=1, max_length=NODES)]
    score: Score
    k: Literal[1, 2, 4, 8] = 4
    basis: Basis | None = None
    training_data: TrainingData
    findings: Findings | None = None
    gates: Annotated[tuple[GateResult, ...], Field(max_length=32)] = ()
    evidence: Evidence = Evidence.UNVERIFIED
    licence: Text

    @model_validator(mode="after")
    def _whole(self) -> CircuitManifest:
        for problem, found in self._problems():
            if found:
                raise ValueError(problem)
        return self

    def _problems(self) -> list[tuple[str, bool]]:
        nodes = [one.what for one in self.nodes]
        watched, wheres = self.watched, [one.where for one in self.places]
        return [
            ("a node stands twice", len(set(nodes)) != len(nodes)),
            ("a tap point stands twice", len(set(wheres)) != len(wheres)),
            ("a circuit has a part that acts", not self.parts),
            (f"1 to {WATCHED} nodes are watched", not 1 <= len(watched) <= WATCHED),
            ("a node lies beyond the model's last block", not all(self.model.has(node.where) for node in nodes)),
            ("what is read needs a place", not {one.what.where for one in watched} <= set(wheres)),
            ("a place is read by nobody", not set(wheres) <= self._read()),
            ("a node lies beyond the heads of its place", not all(map(self._has_head, watched))),
            ("rows of the residual stream are as wide as the model", not all(map(self._is_as_wide, self.places))),
            ("readouts own the columns of their place, each one once", not self._columns_add_up()),
            ("evidence is unverified, or used once every gate passed", self.evidence is not self._earned()),
            ("a page needs ablations that agree", self.severity is Severity.PAGE and FOR_PAGES not in self._passed()),
        ]

    def _earned(self) -> Evidence:
        validated = self.findings is not None and bool(self.gates) and not self.failed
        return Evidence.USED if validated else Evidence.UNVERIFIED

    def _passed(self) -> set[str]:
        # A draft never pages, whatever it asks for: what it would do once validated may stand there.
        return {gate.name for gate in self.gates if gate.passed} if self.findings is not None else {FOR_PAGES}

    def _read(self) -> set[TapPoint]:
        return {one.what.where for one in self.watched} | ({self.basis_at} if self.basis_at else set())

    def _has_head(self, one: CircuitNode) -> bool:
        heads = {place.where: place.heads or 1 for place in self.places}
        return (one.what.head or 0) < heads.get(one.what.where, 1)

    def _is_as_wide(self, place: Place) -> bool:
        return place.where.site is not Site.RESID_POST or place.width == self.width

    def _columns_add_up(self) -> bool:
        for place in self.places:
            owned = [
                column
                for one in self.watched
                if one.what.where == place.where and one.readout is not None
                for column in range(one.readout.first, one.readout.first + one.readout.columns)
            ]
            if self.basis is not None and self.basis_at == place.where:
                owned += range(self.basis.first, self.basis.first + self.basis.rank + 1)
            if sorted(owned) != list(range(place.columns)):
                return False
        return True

    @property
    def basis_at(self) -> TapPoint | None:
        return None if self.basis is None else TapPoint.parse(self.basis.tap_point)

    @property
    def watched(self) -> tuple[CircuitNode, ...]:
        """The nodes that are read on live traffic, in the order of their activities."""
        return tuple(one for one in self.nodes if one.readout is not None)

    @property
    def parts(self) -> tuple[Node, ...]:
        """The nodes that the circuit is: those that can be ablated by themselves."""
        return tuple(one.what for one in self.nodes if one.what.where.site is not Site.RESID_POST)

    @property
    def failed(self) -> tuple[str, ...]:
        """The gates that keep it a draft."""
        return tuple(gate.name for gate in self.gates if not gate.passed and gate.name != FOR_PAGES)

    @property
    def spec_hash(self) -> str:
        """What sketches, baselines and alarms of this very circuit are marked with."""
        return self.content_digest

    def place(self, where: TapPoint) -> Place:
        return next(one for one in self.places if one.where == where)
