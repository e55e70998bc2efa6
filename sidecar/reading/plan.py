"""The plan: all directions of a tap point stacked into one matrix, bound to the model that is served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from probes.artifact import Artifact, fit
from probes.circuits.artifact import Circuit
from probes.circuits.artifact import fit as fit_circuit
from probes.circuits.baseline import Baseline
from probes.manifest import AggregationKind, Kind, TokenSpan
from probes.registry import Loaded
from sidecar.circuits.watch import Watched
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.reading.circuits import CircuitColumns, PlannedCircuit, Stacked, Standing, behind, stack
from sidecar.snapshot import ArtifactSnapshot
from sidecar.types import Evidence, FloatArray, IndexArray, ModelIdentity, Site, TapPoint

REMEMBERED = 4  # plans before the one in force whose readings can still be understood

Layout: TypeAlias = tuple[tuple[str, int], ...]  # of every column: digest of its artifact, and which column there


@dataclass(frozen=True, slots=True)
class Signal:
    """One probe as it is served: where its columns are, what its readings mean, when it fires."""

    name: str
    version: str
    digest: str
    tap_point: TapPoint
    column: int  # in its tap point's matrix: the first of its columns
    aggregation: AggregationKind
    window: int
    span: TokenSpan
    skip_positions: int
    scale: float
    offset: float
    threshold: float
    target_fpr: float
    certified: bool
    evidence: Evidence
    stale_reason: str
    columns: int = 1
    agree: int = 1
    also: tuple[TapPoint, ...] = ()  # further tap points, whose readings are added
    buckets: tuple[tuple[int, float], ...] = ()  # (tokens read, threshold from there on), by rising length
    failed: bool = False  # a gate before its release: shown, never flagging
    knots: tuple[
        tuple[float, float], ...
    ] = ()  # (score, probability) of an isotonic calibration, in place of scale and offset

    @property
    def may_flag(self) -> bool:
        """Whether it has earned that anybody acts on it, here and now."""
        return self.evidence is not Evidence.STALE and not self.failed


@dataclass(frozen=True, slots=True)
class Control:
    """The positive control of a tap point: a column whose readings lie in [low, high] on any real traffic."""

    column: int
    low: float
    high: float
    skip_positions: int


@dataclass(frozen=True, slots=True)
class Share:
    """Columns here whose readings are added to those of a signal that stands at another tap point."""

    signal: int  # in Plan.signals
    columns: slice  # here
    places: slice  # of the signal's columns, among those of all


@dataclass(frozen=True, slots=True)
class TapPlan:
    """Everything that is read at one tap point: readings = rows @ directions + offsets.

    Signals come first, in their order; those of attention and of several heads have more columns than one. Circuits come last.
    """

    tap_point: TapPoint
    columns: tuple[str, ...]
    directions: FloatArray  # [D, K]
    offsets: FloatArray  # [K]
    signals: slice  # of Plan.signals
    places: slice  # of the signals' columns, among those of all tap points
    control: Control | None
    origins: Layout = ()
    shares: tuple[Share, ...] = ()  # in signals of other tap points
    owners: IndexArray | None = None  # which of its signals each of these columns belongs to; None: one each
    circuits: CircuitColumns | None = None

    @property
    def width(self) -> int:
        """D, of its rows: at the heads it may be another than the residual stream's."""
        return len(self.directions)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read, of which generation. Immutable: a reload makes another one. Can be sent to another process."""

    generation: int
    model: ModelIdentity
    taps: Mapping[TapPoint, TapPlan]
    signals: tuple[Signal, ...]
    gates: tuple[tuple[TokenSpan, int], ...]  # the distinct (span, skipped positions) of all signals
    gate_of: IndexArray  # [S], which gate each signal has
    artifacts: tuple[ArtifactSnapshot, ...]
    firsts: IndexArray | None = None  # [S], each signal's first column among those of all; None: they are the signals
    verdict_taps: frozenset[TapPoint] = frozenset()  # where a signal may block or escalate: never left out
    earlier: Mapping[int, Mapping[TapPoint, Layout]] = field(default_factory=dict)  # by generation, of the same model
    circuits: tuple[PlannedCircuit, ...] = ()
    circuit_places: int = 0  # columns of a step's readings of circuits
    watched: tuple[Watched, ...] = ()  # what the baselines of this model say of circuits in their slices
    baselines: Mapping[str, str] = field(default_factory=dict)  # digest of the one that speaks of it, by circuit

    @property
    def width(self) -> int:
        """How many columns the signals have together."""
        return sum(signal.columns for signal in self.signals)

    def reads_signals(self, where: TapPoint) -> bool:
        """Whether a probe reads there, or a control; a tap point of circuits alone has neither."""
        circuits = self.taps[where].circuits
        return circuits is None or bool(circuits.here.start)

    def row_width(self, where: TapPoint) -> int | None:
        """How wide hidden states there must be; None where nothing is read and the site has a width of its own."""
        if where in self.taps:
            return self.taps[where].width
        return self.model.width if where.site is Site.RESID_POST else None


def build_plan(
    generation: int,
    artifacts: Iterable[Loaded],
    model: ModelIdentity,
    *,
    verdict_signals: frozenset[str] = frozenset(),
    before: Plan | None = None,
) -> Plan:
    """Stack the artifacts that fit the model; those that do not stand in ``Plan.artifacts`` as refused, with the reason.

    verdict_signals: names of the signals that may block or escalate. before: the plan in force so far.
    """
    loaded = list(artifacts)
    states: list[ArtifactSnapshot] = []
    members: defaultdict[TapPoint, list[_Member]] = defaultdict(list)
    for artifact in (one for one in loaded if isinstance(one, Artifact)):
        manifest = artifact.manifest
        try:
            found = fit(manifest, model)
        except ArtifactError as refused:
            states.append(ArtifactSnapshot(manifest.name, manifest.version, "refused", str(refused)))
            continue
        for part, where in enumerate(manifest.everywhere):
            members[where].append(_Member(artifact, found.evidence, found.reason, part))
        states.append(ArtifactSnapshot(manifest.name, manifest.version, found.evidence.value, found.reason))
    circuits, refused_or_not = _fitting(
        [one for one in loaded if isinstance(one, Circuit)], model, dict.fromkeys(members, model.width)
    )
    told = (one for one in loaded if isinstance(one, Baseline))
    baselines = [one for one in told if one.manifest.model_hash == model.weights_digest]
    stacked, planned, circuit_places = stack(circuits, model.weights_digest)
    ordered = {where: sorted(members[where], key=lambda member: not member.signals) for where in sorted(members)}
    signals = tuple(signal for standing in ordered.values() for signal in _signals(standing))
    places = _places(signals)
    wanted = [(signal.span, signal.skip_positions) for signal in signals]
    gates = tuple(dict.fromkeys(wanted))
    deciding = {one for one in signals if one.name in verdict_signals}
    taps = {where: _tap_plan(where, standing, signals, places) for where, standing in ordered.items()}
    return Plan(
        generation,
        model,
        {where: _with_circuits(where, taps.get(where), stacked.get(where)) for where in sorted({*taps, *stacked})},
        signals,
        gates,
        np.array([gates.index(gate) for gate in wanted], dtype=np.intp),
        (*states, *refused_or_not),
        _firsts(signals),
        frozenset(where for one in deciding for where in (one.tap_point, *one.also)),
        _earlier(model, before),
        planned,
        circuit_places,
        tuple(one for baseline in baselines for one in baseline.watched),
        {one.name: baseline.digest for baseline in baselines for one in baseline.manifest.circuits},
    )


def _fitting(
    circuits: Iterable[Circuit], model: ModelIdentity, widths: dict[TapPoint, int]
) -> tuple[list[Standing], list[ArtifactSnapshot]]:
    """The circuits that fit the model, and what is to be said of each. widths: of the rows where something is read already."""
    found: list[Standing] = []
    states: list[ArtifactSnapshot] = []
    for artifact in circuits:
        about = artifact.manifest
        try:
            fitted = fit_circuit(about, model)
            _agree(artifact, widths)
        except ArtifactError as refused:
            states.append(ArtifactSnapshot(about.name, about.version, "refused", str(refused)))
            continue
        widths |= {place.where: place.width for place in about.places}
        found.append(Standing(artifact, fitted))
        states.append(ArtifactSnapshot(about.name, about.version, fitted.evidence.value, fitted.reason))
    return found, states


def _agree(circuit: Circuit, widths: Mapping[TapPoint, int]) -> None:
    """Raises ArtifactError if others read rows of another width at one of its tap points."""
    for place in circuit.manifest.places:
        if widths.get(place.where, place.width) != place.width:
            raise ArtifactError(
                ArtifactReason.OTHER_MODEL,
                f"{place.tap_point}: its rows are {place.width} wide, others read rows of {widths[place.where]} there",
            )


def _with_circuits(where: TapPoint, tap: TapPlan | None, stacked: Stacked | None) -> TapPlan:
    """A tap point's plan with the circuits' columns behind all others."""
    nothing = slice(0, 0)
    if stacked is None:
        assert tap is not None
        return tap
    if tap is None:
        empty = np.zeros((len(stacked.directions), 0), np.float32)
        tap = TapPlan(where, (), empty, np.zeros(0, np.float32), nothing, nothing, None)
    return replace(
        tap,
        columns=(*tap.columns, *stacked.names),
        directions=np.ascontiguousarray(np.concatenate([tap.directions, stacked.directions], axis=1)),
        offsets=np.concatenate([tap.offsets, np.zeros(len(stacked.names), np.float32)]),
        origins=(*tap.origins, *stacked.origins),
        circuits=behind(stacked.columns, len(tap.columns)),
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """What an artifact has at one of its tap points."""

    artifact: Artifact
    evidence: Evidence
    reason: str
    part: int  # which of its tap points this is

    @property
    def signals(self) -> bool:
        """Whether its signal stands here: at the first of its tap points."""
        return self.artifact.manifest.kind is Kind.LINEAR_PROBE and not self.part

    @property
    def width(self) -> int:
        return self.artifact.manifest.columns

    @property
    def columns(self) -> slice:
        """Its columns of this tap point, in the artifact."""
        return slice(self.part * self.width, (self.part + 1) * self.width)


def _places(signals: Sequence[Signal]) -> list[slice]:
    """Where each signal's columns are among those of all signals."""
    stops = np.cumsum([signal.columns for signal in signals], dtype=np.intp).tolist()
    return [slice(stop - signal.columns, stop) for stop, signal in zip(stops, signals, strict=True)]


def _firsts(signals: Sequence[Signal]) -> IndexArray | None:
    columns = np.array([signal.columns for signal in signals], dtype=np.intp)
    return None if (columns == 1).all() else np.cumsum(columns) - columns


def _earlier(model: ModelIdentity, before: Plan | None) -> dict[int, Mapping[TapPoint, Layout]]:
    """Column layouts of the newest plans before this one, as long as they were for the same model."""
    if before is None or before.model != model:
        return {}
    known = {**before.earlier, before.generation: {where: tap.origins for where, tap in before.taps.items()}}
    return {generation: known[generation] for generation in sorted(known)[-REMEMBERED:]}


def _signals(members: Sequence[_Member]) -> list[Signal]:
    """The signals that stand at a tap point, each with its first column there."""
    made: list[Signal] = []
    for member in members:
        if member.signals:
            made.append(_signal(member.artifact, sum(one.columns for one in made), member.evidence, member.reason))
    return made


def _tap_plan(
    where: TapPoint, members: Sequence[_Member], signals: Sequence[Signal], places: Sequence[slice]
) -> TapPlan:
    """members: those whose signals stand here first."""
    here = [i for i, signal in enumerate(signals) if signal.tap_point == where]
    number = {signal.name: i for i, signal in enumerate(signals)}
    control: Control | None = None
    shares: list[Share] = []
    names: list[str] = []
    origins: list[tuple[str, int]] = []
    for member in members:
        manifest, column = member.artifact.manifest, len(names)
        names.extend([manifest.name] * member.width)
        origins.extend((member.artifact.digest, k) for k in range(member.columns.start, member.columns.stop))
        if member.part:
            signal = number[manifest.name]
            shares.append(Share(signal, slice(column, column + member.width), places[signal]))
        elif manifest.control_range is not None:
            bounds = manifest.control_range
            control = Control(column, bounds.low, bounds.high, manifest.feature_contract.skip_positions)
    first = here[0] if here else 0
    return TapPlan(
        where,
        tuple(names),
        np.ascontiguousarray(np.concatenate([one.artifact.directions[:, one.columns] for one in members], axis=1)),
        np.concatenate([one.artifact.offsets[one.columns] for one in members]),
        slice(first, first + len(here)),
        slice(places[here[0]].start, places[here[-1]].stop) if here else slice(0, 0),
        control,
        tuple(origins),
        tuple(shares),
        _owners([signals[i] for i in here]),
    )


def _owners(signals: Sequence[Signal]) -> IndexArray | None:
    columns = [signal.columns for signal in signals]
    return np.repeat(np.arange(len(columns)), columns) if any(many > 1 for many in columns) else None


def _signal(artifact: Artifact, column: int, evidence: Evidence, reason: str) -> Signal:
    manifest = artifact.manifest
    if manifest.aggregation is None or manifest.calibration is None or manifest.threshold is None:
        raise AssertionError("the manifest's validator guarantees these for a probe")
    return Signal(
        manifest.name,
        manifest.version,
        artifact.digest,
        manifest.where,
        column,
        manifest.aggregation.kind,
        manifest.aggregation.window,
        manifest.feature_contract.token_span,
        manifest.feature_contract.skip_positions,
        manifest.calibration.scale,
        manifest.calibration.offset,
        manifest.threshold.probability,
        manifest.threshold.target_fpr,
        manifest.threshold.certified,
        evidence,
        reason,
        manifest.aggregation.columns,
        manifest.aggregation.agree,
        manifest.everywhere[1:],
        tuple((bucket.min_tokens, bucket.probability) for bucket in manifest.threshold.buckets),
        bool(manifest.failed),
        manifest.calibration.knots or (),
    )
