"""The plan: all directions of a tap point stacked into one matrix, bound to the model that is served."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from probes.artifact import Artifact, fit
from probes.manifest import AggregationKind, Kind, TokenSpan
from sidecar.errors import ArtifactError
from sidecar.snapshot import ArtifactSnapshot
from sidecar.types import Evidence, FloatArray, IndexArray, ModelIdentity, TapPoint

REMEMBERED = 4  # plans before the one in force whose readings can still be understood

Layout: TypeAlias = tuple[tuple[str, int], ...]  # of every column: digest of its artifact, and which column there


@dataclass(frozen=True, slots=True)
class Signal:
    """One probe as it is served: where its column is, what its readings mean, when it fires."""

    name: str
    version: str
    digest: str
    tap_point: TapPoint
    column: int  # in its tap point's matrix
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


@dataclass(frozen=True, slots=True)
class Control:
    """The positive control of a tap point: a column whose readings lie in [low, high] on any real traffic."""

    column: int
    low: float
    high: float
    skip_positions: int


@dataclass(frozen=True, slots=True)
class TapPlan:
    """Everything that is read at one tap point: readings = rows @ directions + offsets.

    Signals come first: the n-th of ``Plan.signals[signals]`` is column n.
    """

    tap_point: TapPoint
    columns: tuple[str, ...]
    directions: FloatArray  # [D, K]
    offsets: FloatArray  # [K]
    signals: slice  # of Plan.signals
    control: Control | None
    origins: Layout = ()


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
    verdict_taps: frozenset[TapPoint] = frozenset()  # where a signal may block or escalate: never left out
    earlier: Mapping[int, Mapping[TapPoint, Layout]] = field(default_factory=dict)  # by generation, of the same model


def build_plan(
    generation: int,
    artifacts: Iterable[Artifact],
    model: ModelIdentity,
    *,
    verdict_signals: frozenset[str] = frozenset(),
    before: Plan | None = None,
) -> Plan:
    """Stack the artifacts that fit the model; those that do not stand in ``Plan.artifacts`` as refused, with the reason.

    verdict_signals: names of the signals that may block or escalate. before: the plan in force so far.
    """
    states: list[ArtifactSnapshot] = []
    fitting: defaultdict[TapPoint, list[tuple[Artifact, Evidence, str]]] = defaultdict(list)
    for artifact in artifacts:
        manifest = artifact.manifest
        try:
            found = fit(manifest, model)
        except ArtifactError as refused:
            states.append(ArtifactSnapshot(manifest.name, manifest.version, "refused", str(refused)))
            continue
        fitting[manifest.where].append((artifact, found.evidence, found.reason))
        states.append(ArtifactSnapshot(manifest.name, manifest.version, found.evidence.value, found.reason))
    signals: list[Signal] = []
    taps = {where: _tap_plan(where, fitting[where], signals) for where in sorted(fitting)}
    wanted = [(signal.span, signal.skip_positions) for signal in signals]
    gates = tuple(dict.fromkeys(wanted))
    gate_of = np.array([gates.index(gate) for gate in wanted], dtype=np.intp)
    verdict_taps = frozenset(signal.tap_point for signal in signals if signal.name in verdict_signals)
    return Plan(
        generation, model, taps, tuple(signals), gates, gate_of, tuple(states), verdict_taps, _earlier(model, before)
    )


def _earlier(model: ModelIdentity, before: Plan | None) -> dict[int, Mapping[TapPoint, Layout]]:
    """Column layouts of the newest plans before this one, as long as they were for the same model."""
    if before is None or before.model != model:
        return {}
    known = {**before.earlier, before.generation: {where: tap.origins for where, tap in before.taps.items()}}
    return {generation: known[generation] for generation in sorted(known)[-REMEMBERED:]}


def _tap_plan(where: TapPoint, members: list[tuple[Artifact, Evidence, str]], signals: list[Signal]) -> TapPlan:
    """``signals`` grows by those of the tap point."""
    members = sorted(members, key=lambda member: member[0].manifest.kind is not Kind.LINEAR_PROBE)  # signals first
    first = len(signals)
    control: Control | None = None
    names: list[str] = []
    origins: list[tuple[str, int]] = []
    for artifact, evidence, reason in members:
        column, width = len(names), artifact.directions.shape[1]
        manifest = artifact.manifest
        names.extend([manifest.name] * width)
        origins.extend((artifact.digest, k) for k in range(width))
        if manifest.kind is Kind.LINEAR_PROBE:
            signals.append(_signal(artifact, column, evidence, reason))
        elif manifest.control_range is not None:
            bounds = manifest.control_range
            control = Control(column, bounds.low, bounds.high, manifest.feature_contract.skip_positions)
    return TapPlan(
        where,
        tuple(names),
        np.ascontiguousarray(np.concatenate([artifact.directions for artifact, _, _ in members], axis=1)),
        np.concatenate([artifact.offsets for artifact, _, _ in members]),
        slice(first, len(signals)),
        control,
        tuple(origins),
    )


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
    )
