"""A plan on its way to the worker: safetensors for the arrays, JSON in its metadata for the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from probes.circuits.manifest import Severity
from probes.manifest import AggregationKind, TokenSpan
from sidecar.circuits.circuit import Circuit, Node
from sidecar.circuits.reference import Reference
from sidecar.circuits.watch import Watched
from sidecar.reading.circuits import CircuitColumns, PlannedCircuit
from sidecar.reading.plan import Control, Layout, Plan, Share, Signal, TapPlan
from sidecar.snapshot import ArtifactSnapshot
from sidecar.types import Evidence, IndexArray, ModelIdentity, TapLedgerCounts, TapPoint, TrafficReport, UnseenReason

_ARRAYS = ("directions", "offsets")
_LEVELS = ("mean", "half_width", "per_tick")


def to_memory(plan: Plan) -> int:
    """A descriptor of memory that holds the plan; the caller closes it."""
    arrays: dict[str, Any] = {"gate_of": plan.gate_of}
    taps = []
    for i, tap in enumerate(plan.taps.values()):
        arrays.update({f"{i}.{name}": np.ascontiguousarray(getattr(tap, name)) for name in _ARRAYS})
        taps.append(
            {
                "tap_point": tap.tap_point.name,
                "columns": tap.columns,
                "signals": [tap.signals.start, tap.signals.stop],
                "control": tap.control and asdict(tap.control),
                "origins": tap.origins,
                "places": [tap.places.start, tap.places.stop],
                "shares": [
                    (one.signal, [one.columns.start, one.columns.stop], [one.places.start, one.places.stop])
                    for one in tap.shares
                ],
                "owners": None if tap.owners is None else tap.owners.tolist(),
                "circuits": tap.circuits and _columns(tap.circuits),
            }
        )
    facts = {
        "generation": plan.generation,
        "model": asdict(plan.model),
        "taps": taps,
        "signals": [
            {**asdict(signal), "tap_point": signal.tap_point.name, "also": [where.name for where in signal.also]}
            for signal in plan.signals
        ],
        "gates": plan.gates,
        "artifacts": [asdict(one) for one in plan.artifacts],
        "firsts": None if plan.firsts is None else plan.firsts.tolist(),
        "verdict_taps": sorted(where.name for where in plan.verdict_taps),
        "earlier": {
            generation: {where.name: layout for where, layout in layouts.items()}
            for generation, layouts in plan.earlier.items()
        },
        "circuits": [{**asdict(one), "taps": [where.name for where in one.taps]} for one in plan.circuits],
        "circuit_places": plan.circuit_places,
        "watched": [{**asdict(one), "reference": one.reference.tolerance} for one in plan.watched],
        "baselines": dict(plan.baselines),
    }
    for i, one in enumerate(plan.watched):
        arrays |= {f"watched.{i}.{name}": getattr(one.reference, name) for name in _LEVELS}
    memory = os.memfd_create("stethoscope-plan", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(save(arrays, metadata={"plan": json.dumps(facts)}))
    return memory


def from_memory(memory: int) -> Plan:
    """The plan in a descriptor's memory."""
    data = os.pread(memory, os.fstat(memory).st_size, 0)
    length = int.from_bytes(data[:8], "little")
    facts: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["plan"])
    arrays = load(data)
    taps = [_tap(one, i, arrays) for i, one in enumerate(facts["taps"])]
    return Plan(
        generation=facts["generation"],
        model=model(facts["model"]),
        taps=MappingProxyType({tap.tap_point: tap for tap in taps}),
        signals=tuple(_signal(one) for one in facts["signals"]),
        gates=tuple((TokenSpan(span), skip) for span, skip in facts["gates"]),
        gate_of=arrays["gate_of"],
        artifacts=tuple(ArtifactSnapshot(**one) for one in facts["artifacts"]),
        firsts=_indices(facts["firsts"]),
        verdict_taps=frozenset(TapPoint.parse(name) for name in facts["verdict_taps"]),
        earlier={
            int(generation): {TapPoint.parse(name): _layout(layout) for name, layout in layouts.items()}
            for generation, layouts in facts["earlier"].items()
        },
        circuits=tuple(_circuit(one) for one in facts["circuits"]),
        circuit_places=facts["circuit_places"],
        watched=tuple(_watched(one, i, arrays) for i, one in enumerate(facts["watched"])),
        baselines=facts["baselines"],
    )


def _tap(facts: Mapping[str, Any], index: int, arrays: Mapping[str, Any]) -> TapPlan:
    return TapPlan(
        tap_point=TapPoint.parse(facts["tap_point"]),
        columns=tuple(facts["columns"]),
        directions=arrays[f"{index}.directions"],
        offsets=arrays[f"{index}.offsets"],
        signals=slice(*facts["signals"]),
        control=facts["control"] and Control(**facts["control"]),
        origins=_layout(facts["origins"]),
        places=slice(*facts["places"]),
        shares=tuple(Share(signal, slice(*columns), slice(*places)) for signal, columns, places in facts["shares"]),
        owners=_indices(facts["owners"]),
        circuits=facts["circuits"] and _circuit_columns(facts["circuits"]),
    )


def _columns(told: CircuitColumns) -> dict[str, Any]:
    return {
        "here": [told.here.start, told.here.stop],
        "places": [told.places.start, told.places.stop],
        "lengths": [([one.start, one.stop], place) for one, place in told.lengths],
        "norm": told.norm,
    }


def _circuit_columns(facts: Mapping[str, Any]) -> CircuitColumns:
    lengths = tuple((slice(*columns), place) for columns, place in facts["lengths"])
    return CircuitColumns(slice(*facts["here"]), slice(*facts["places"]), lengths, facts["norm"])


def _circuit(facts: Mapping[str, Any]) -> PlannedCircuit:
    told = facts["circuit"]
    nodes = tuple(_node(one) for one in told["nodes"])
    return PlannedCircuit(
        **{
            **facts,
            "circuit": Circuit(**{**told, "nodes": nodes, "weights": tuple(told["weights"])}),
            "severity": Severity(facts["severity"]),
            "span": TokenSpan(facts["span"]),
            "evidence": Evidence(facts["evidence"]),
            "taps": tuple(TapPoint.parse(name) for name in facts["taps"]),
            "unusual": tuple(facts["unusual"]),
        }
    )


def _watched(facts: Mapping[str, Any], index: int, arrays: Mapping[str, Any]) -> Watched:
    mean, half_width, per_tick = (arrays[f"watched.{index}.{name}"] for name in _LEVELS)
    return Watched(**{**facts, "reference": Reference(mean, half_width, facts["reference"], per_tick)})


def _node(facts: Mapping[str, Any]) -> Node:
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in facts.items()}
    return Node(**fields)


def _indices(values: Sequence[int] | None) -> IndexArray | None:
    return None if values is None else np.array(values, dtype=np.intp)


def _layout(origins: Sequence[Sequence[Any]]) -> Layout:
    return tuple((digest, column) for digest, column in origins)


def _signal(facts: Mapping[str, Any]) -> Signal:
    return Signal(
        **{
            **facts,
            "tap_point": TapPoint.parse(facts["tap_point"]),
            "aggregation": AggregationKind(facts["aggregation"]),
            "span": TokenSpan(facts["span"]),
            "evidence": Evidence(facts["evidence"]),
            "also": tuple(TapPoint.parse(name) for name in facts["also"]),
            "buckets": tuple((tokens, threshold) for tokens, threshold in facts["buckets"]),
            "knots": tuple((score, share) for score, share in facts["knots"]),
        }
    )


def model(told: Mapping[str, Any]) -> ModelIdentity:
    return ModelIdentity(**told)


def report(told: Mapping[str, Any]) -> TrafficReport:
    unseen = tuple((UnseenReason(reason), tokens) for reason, tokens in told["unseen"])
    return TrafficReport(**{**told, "unseen": unseen, "tap": TapLedgerCounts(**told["tap"])})
